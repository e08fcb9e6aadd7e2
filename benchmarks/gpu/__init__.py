"""The sections of the GPU acceptance."""
