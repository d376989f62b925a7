"""A stack on disk whose slices are read one at a time."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from rcm_daemon.core.records import StackId
from rcm_daemon.errors import StackFileError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    import numpy.typing as npt

MAX_SIDE = 4096
"""Most rows or columns of a slice: four times a VivaScope frame, a bound against compression bombs."""
MAX_SLICES = 1000
"""Most slices of a stack, ten times the longest on record."""
DIM_GREY = 2**14
"""16-bit stacks without a grey level of this much or more are likely of a camera with fewer bits."""


@dataclass(frozen=True)
class RecordedStack:
    """One stack, opened; slices are decoded only when read, by one thread.

    Attributes
    ----------
    stack_id
        The file's stem or the folder's name, fit for a wire message.
    z_um
        Depth of each slice in um, in file order.
    pixel_size_um
        Pitch, the same in x and y.
    shape, dtype
        Of every slice: [rows, columns], `uint8` or `uint16`.
    max_value
        Grey level of full scale, 0 = the dtype's.
    flags
        What the reader did on its own: `caption_cropped`, `pitch_assumed`.
    """

    stack_id: str
    path: Path
    z_um: tuple[float, ...]
    pixel_size_um: float
    shape: tuple[int, int]
    dtype: str
    max_value: int
    flags: tuple[str, ...]
    _read: Callable[[int], npt.NDArray[Any]]
    _close: Callable[[], None]

    @property
    def n_slices(self) -> int:
        """How many slices there are."""
        return len(self.z_um)

    def read(self, index: int) -> npt.NDArray[Any]:
        """Decode slice `index` (0 to n_slices - 1) to an array [rows, columns] of `dtype`.

        Raises
        ------
        StackFileError
            No such slice, or its bytes do not decode to what the file declares.
        """
        if not 0 <= index < self.n_slices:
            raise StackFileError(f"slices are numbered 0 to {self.n_slices - 1}, got {index} for {self.path}")
        image = self._read(index)
        if image.shape != self.shape or image.dtype.newbyteorder("=") != np.dtype(self.dtype):
            raise StackFileError(
                f"slice {index} must decode to {self.dtype} {list(self.shape)}, got {image.dtype} "
                f"{list(image.shape)} in {self.path}"
            )
        return np.ascontiguousarray(image, dtype=self.dtype)

    def with_max_value(self, max_value: int) -> RecordedStack:
        """Return the stack with a grey level of full scale that its file does not state.

        Raises
        ------
        StackFileError
            Its dtype does not reach so far.
        """
        largest = np.iinfo(self.dtype).max
        if not 1 <= max_value <= largest:
            raise StackFileError(
                f"--max-value of {self.dtype} slices must be 1 to {largest}, got {max_value} for {self.path}"
            )
        return replace(self, max_value=max_value)

    def is_dim(self, brightest: int) -> bool:
        """Whether slices that are no brighter than this look like those of a camera with fewer bits."""
        return self.dtype == "uint16" and not self.max_value and brightest < DIM_GREY

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def stack_id_of(name: str) -> str:
    """Turn a file or folder name into an id that the wire format accepts, unchanged where possible."""
    name = unicodedata.normalize("NFKC", name)[:200] or "stack"
    try:
        return str(_stack_id().validate_python(name))
    except ValidationError:
        return re.sub(r"[^ -~]|[/\\]", "_", name)


@cache
def _stack_id() -> TypeAdapter[str]:
    return TypeAdapter(StackId)


def check_size(rows: int, columns: int, n_slices: int, path: Path) -> None:
    """Refuse what declares more pixels than a stack can have, before anything is decoded."""
    if not (1 <= rows <= MAX_SIDE and 1 <= columns <= MAX_SIDE):
        raise StackFileError(
            f"a slice must have 1 to {MAX_SIDE} rows and columns, got {rows} x {columns} declared in {path}"
        )
    if not 1 <= n_slices <= MAX_SLICES:
        raise StackFileError(f"a stack must have 1 to {MAX_SLICES} slices, got {n_slices} declared in {path}")
