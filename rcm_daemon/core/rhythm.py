"""When the next slice is to be expected, by when the last ones came, and when to rehearse for it.

After 0.1 s without work, all that a slice needs has left the processor's caches, and comes back only in four
to six runs, not in one. A microscope has a frame rate. So these runs can be made for nothing just before the
next slice, ending so early that it hardly ever has to wait for one.
"""

from __future__ import annotations

import statistics
from collections import deque

N_INTERVALS = 5
"""So many are looked at, of which two may be anything (a pause, a burst)."""
SURE_DEVIATIONS = 3.0
EARLIEST_S = 0.001
"""A slice is not expected earlier than its time by more than so many median deviations and this."""
MOST_UNSURE_S = 0.008
"""After a longer wait little would be left of a rehearsal."""
REHEARSAL_SHARE = 0.5
N_PASSES = 8
MARGIN = 1.05
"""A rehearsal may take so much longer than its passes took the last time."""
MOST_GROWTH = 1.5
"""By more than this factor a pass is not believed to have become slower: something else had the core."""
FORGET = 0.998
"""Where not all passes fit, all are expected to take so much less the next time: so they are tried again."""
FORGET_FIRST = 0.8
"""The same while there has been a single pass: a start is busy, and it was presumably held up."""


class Rhythm:
    """Learns when slices come, and says when to rehearse for the next; all times are monotonic seconds.

    Parameters
    ----------
    share
        A rehearsal takes at most this share of the time between two slices, 0 = there is none.

    Attributes
    ----------
    n_left
        Passes of the present rehearsal that are still to be made.
    """

    def __init__(self, share: float = REHEARSAL_SHARE) -> None:
        self._share = share
        self._last_s: float | None = None
        self._intervals_s: deque[float] = deque(maxlen=N_INTERVALS)
        self._took_s = [0.0] * N_PASSES  # each pass, when it was made last; 0 = never yet
        self._longest_s = self._end_s = 0.0
        self._n_made = 0
        self.n_left = 0

    def arrived(self, now_s: float) -> None:
        """Note a slice, and plan for the one after it where slices come regularly."""
        if self._last_s is not None:
            self._intervals_s.append(now_s - self._last_s)
        self._last_s = now_s
        self.n_left = 0
        if not self._share or len(self._intervals_s) < N_INTERVALS:
            return
        interval_s = statistics.median(self._intervals_s)
        deviation_s = statistics.median(abs(one - interval_s) for one in self._intervals_s)
        early_s = SURE_DEVIATIONS * deviation_s + EARLIEST_S
        if early_s <= MOST_UNSURE_S:
            self._plan(self._share * interval_s, now_s + interval_s - early_s)

    def _plan(self, longest_s: float, end_s: float) -> None:
        """Plan as many of the last passes as there is time for."""
        n = N_PASSES
        while n and MARGIN * self._takes_s(n) > longest_s:
            n -= 1
        if n < N_PASSES:
            forget = FORGET_FIRST if self._n_made == 1 else FORGET
            self._took_s = [forget * took_s for took_s in self._took_s]
        self.n_left, self._longest_s, self._end_s = n, longest_s, end_s

    def _takes_s(self, n: int) -> float:
        """Expect the last n passes to take what they took before, one never made what the quickest took."""
        return sum(took_s or self._quickest_s for took_s in self._took_s[N_PASSES - n :])

    @property
    def _quickest_s(self) -> float:
        return min((took_s for took_s in self._took_s if took_s), default=0.0)

    def wait_s(self, now_s: float) -> float | None:
        """Return how long to wait before the next pass, 0 = it is due; None = there is none to be made.

        Each is to be begun as late as those still to be made allow, so that the last one ends when it should.
        Where it has become too late for all of them the last are made, since they do most.
        """
        while self.n_left and now_s + self._takes_s(self.n_left) > self._end_s:
            self.n_left -= 1
        takes_s = MARGIN * self._takes_s(self.n_left) or self._longest_s
        return max(0.0, self._end_s - takes_s - now_s) if self.n_left else None

    def rehearsed(self, begun_s: float, now_s: float) -> None:
        """Note that a pass was made."""
        place = N_PASSES - self.n_left
        took_s, before_s = now_s - begun_s, self._took_s[place]
        self._took_s[place] = min(took_s, MOST_GROWTH * before_s) if before_s else took_s
        self._n_made += 1
        self.n_left -= 1
