"""Setuptools as the build backend, without the note that it gives of every editable installation and pip repeats as a warning.

The note is about folders of the package's name in the working directory. What else setuptools warns of is shown.
"""

import warnings
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401 (pip calls them)
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)


def build_editable(*arguments: Any, **options: Any) -> str:
    """As ``setuptools.build_meta.build_editable``, which PEP 660 describes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Editable installation")
        return build_meta.build_editable(*arguments, **options)
