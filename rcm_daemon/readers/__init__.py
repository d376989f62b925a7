"""Recorded stacks from files: `open_stack` gives slices in order, with their depths and pitch.

`opening` chooses the reader; `tiff`, `images` and `vivastack` read; `directories`, `tiff_pages` and
`image_header` look at what a file declares before anything is decoded; `scale`, `tiff_metadata` and `units`
say where the slices lie in um.
"""

from rcm_daemon.readers.opening import open_stack
from rcm_daemon.readers.recorded_stack import RecordedStack

__all__ = ["RecordedStack", "open_stack"]
