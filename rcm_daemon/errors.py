"""The one family of errors; a message says the rule, what was expected, what came, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class RcmError(Exception):
    """Anything this project refuses; `str()` is one sentence fit for an operator."""

    exit_code = 1


class ConfigurationError(RcmError):
    """A setting that cannot be served; carries every fault found, not only the first.

    Parameters
    ----------
    faults
        One sentence a fault, at least one.
    """

    exit_code = 78  # EX_CONFIG: a restart will not mend it

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(self.faults))


class StackFileError(RcmError):
    """A recorded stack (file or folder) that cannot be read as one."""


class JournalDamagedError(RcmError):
    """The journal turned out damaged while in use; the next start salvages it."""


class BundleError(RcmError):
    """A model bundle that is not whole, not what its manifest says, or not runnable here."""


class InferenceError(RcmError):
    """A network run that gave nothing usable for one slice or one stack."""


class DeviceError(InferenceError):
    """A network run that failed, whatever it was given; on a GPU only a new process recovers."""


class DataSetError(RcmError):
    """A training set, manifest or checkpoint that cannot be used."""
