"""Files of tensors, read as data: nothing in them can run."""

from __future__ import annotations

from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch

from rcm_daemon.errors import DataSetError

if TYPE_CHECKING:
    from pathlib import Path


def read_torch_file(path: Path, what: str) -> Any:
    """Read a file that torch saved, of tensors and plain values only.

    Parameters
    ----------
    path
        The file.
    what
        What it must be, for the error.

    Raises
    ------
    DataSetError
        If it cannot be read as that.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataSetError(f"{what} must be a readable file, got {error.strerror} at {path}") from error
    except (UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise DataSetError(f"{what} must be a file of tensors saved by torch, {path} is not") from error
