"""Types of arrays that several rooms share."""

from typing import Any

import numpy as np

DType = np.dtype[Any]

#: Any array of the graphs' types.
Array = np.ndarray[Any, DType]
