"""``cases`` for tests, and one-node models of the operator."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the test folders are no packages; this lets them import `cases`
