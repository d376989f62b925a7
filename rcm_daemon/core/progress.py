"""Whether work that waits gets done."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Progress:
    """Sees that what waits has not moved for too long; times are monotonic seconds."""

    patience_s: float
    _n_done: int = field(default=-1, init=False)
    _since_s: float = field(default=0.0, init=False)

    def is_stalled(self, now_s: float, n_waiting: int, n_done: int) -> bool:
        """Whether something waits and for `patience_s` nothing has been done."""
        if n_done != self._n_done or not n_waiting:
            self._n_done, self._since_s = n_done, now_s
        return now_s - self._since_s > self.patience_s
