"""Recorded stacks from files: `open_stack` gives slices in order, with their depths and pitch.

`opening` chooses the reader; `tiff`, `images` and `vivastack` read; `directories` and `image_header` look at what
a file declares before anything is decoded; `scale` and `units` say where the slices lie in um.
"""
