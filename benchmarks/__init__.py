"""Developers' own benchmarks; not in the wheel."""
