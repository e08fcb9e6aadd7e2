"""``python -m mgvq_export`` is the command ``mgvq-export``."""

from mgvq_export.cli import main

main(prog_name="mgvq-export")
