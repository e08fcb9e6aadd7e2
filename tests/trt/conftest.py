"""Lets the tests of this folder import its helper ``stubs``."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # last: other folders have a conftest too
