"""Describes files, and what this machine can run."""
