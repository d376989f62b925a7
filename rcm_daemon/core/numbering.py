"""Which messages of one run of one instrument are known to be lost."""

from __future__ import annotations

from typing import Literal


class Numbering:
    """Counts the holes in a run's message numbers, which rise by one from 0.

    A hole is a loss until the message arrives after all. Holes are kept as ranges, so that no number,
    however large, costs memory; at most `max_ranges` are kept apart, and what falls into older ones later
    still counts as lost.

    Attributes
    ----------
    next_number
        The lowest number not known to have been sent.
    holes
        What was sent below it and not received, in rising order.
    n_lost
        How many numbers that is, with those no longer kept apart.
    """

    def __init__(self, max_ranges: int = 1_000) -> None:
        self.next_number = 0
        self.holes: list[range] = []
        self._max_ranges = max_ranges
        self.n_lost = 0

    def observe(self, number: int) -> Literal["new", "late", "repeated"]:
        """Account for a counted message; says whether it is new, fills a hole, or was seen before."""
        if number >= self.next_number:
            self._expect(number)
            self.next_number = number + 1
            return "new"
        for position, hole in enumerate(self.holes):
            if number in hole:
                parts = (range(hole.start, number), range(number + 1, hole.stop))
                self.holes[position : position + 1] = [part for part in parts if part]
                del self.holes[: -self._max_ranges]
                self.n_lost -= 1
                return "late"
        return "repeated"

    def observe_highest(self, number: int) -> None:
        """Account for a heartbeat, which says that all up to `number` were sent (-1: none yet)."""
        if number >= self.next_number:
            self._expect(number + 1)
            self.next_number = number + 1

    def _expect(self, number: int) -> None:
        if number > self.next_number:
            self.holes.append(range(self.next_number, number))
            self.n_lost += number - self.next_number
            del self.holes[: -self._max_ranges]
