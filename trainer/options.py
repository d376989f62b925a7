"""Options that several commands of `rcm-trainer` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DataOption = Annotated[
    Path, typer.Option(help="Data set: a manifest (CSV or Parquet), or the folder that holds it.")
]
OutOption = Annotated[Path, typer.Option(help="Folder of this run; created if it does not exist.")]
CacheOption = Annotated[
    Path | None, typer.Option(help="Folder for prepared slices and embeddings. [default: DATA/cache]")
]
SplitOption = Annotated[
    Path | None, typer.Option(help="A split.json drawn before. [default: the run's own, else drawn]")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
PrecisionOption = Annotated[
    str, typer.Option(help="auto, full or mixed (bfloat16, on CUDA float16 if it must be).")
]
ThreadsOption = Annotated[
    int, typer.Option(min=0, help="Threads of torch on the CPU; 0 leaves its own choice.")
]
WorkersOption = Annotated[int, typer.Option(min=0, help="Worker processes that prepare slices.")]
MethodOption = Annotated[str | None, typer.Option(help="Method of the paper's comparison, by plain name.")]
StartOption = Annotated[
    str | None,
    typer.Option(
        metavar="PATH|default",
        help="Run folder, checkpoint or bundle to fine-tune from; default: the bundle that comes along.",
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
