"""Options of the commands that open recorded stacks: what their files may not state."""

from __future__ import annotations

from typing import Annotated

import typer

ZStepOption = Annotated[
    float | None, typer.Option("--z-step-um", metavar="X", help="Distance of neighbouring slices, um.")
]
PitchOption = Annotated[float | None, typer.Option("--pixel-size-um", metavar="X", help="Pitch, um a pixel.")]
SeriesOption = Annotated[
    int | None, typer.Option("--series", metavar="N", help="Which series of a file that has several, from 0.")
]
MaxValueOption = Annotated[
    int | None,
    typer.Option(
        "--max-value",
        metavar="N",
        help="Grey level of full scale, as 4095 of a 12-bit camera; default: the largest of 8 or 16 bits.",
    ),
]
