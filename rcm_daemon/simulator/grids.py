"""Types of the arrays that live on the tissue grid (one grid point a micrometre)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.float32]
"""[rows, columns] or [layers, rows, columns] of float32."""

Labels = NDArray[np.int32]
"""[rows, columns] numbers of cells."""

Frame = NDArray[np.uint8]
"""[rows, columns] camera frame, 0 to 255."""
