"""The package's version, in the one place that holds it. It is written into graphs, manifests and reports."""

__version__ = "0.1.0"
