"""The command `rcm-trainer evaluate`."""

from __future__ import annotations

import math
from pathlib import Path  # noqa: TC003 (typer reads the annotations)
from typing import Annotated

import typer


def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for evaluation.json and evaluation.md.")],
    bundle: Annotated[Path | None, typer.Argument(help="Folder of the bundle, if one is scored.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data set to evaluate on.")] = None,
    predictions: Annotated[
        list[Path] | None,
        typer.Option(help="CSV of another method's predictions; repeatable, see docs/data.md."),
    ] = None,
    split: Annotated[
        Path | None, typer.Option(help="A split.json of that data set: only its test part is used.")
    ] = None,
    single: Annotated[Path | None, typer.Option(help="Single-image bundle to compare with.")] = None,
    train_data: Annotated[
        Path | None, typer.Option(help="Data set the depth and prior baselines are fitted on.")
    ] = None,
    train_split: Annotated[
        Path | None, typer.Option(help="A split.json of it: only its training part is used.")
    ] = None,
    fresh_phantoms: Annotated[int, typer.Option(help="Unseen phantoms, seeded by the bundle's digest.")] = 0,
    live: Annotated[
        bool, typer.Option("--live", help="Also replay every stack slice by slice, as the daemon runs.")
    ] = False,
    beside: Annotated[
        list[Path] | None, typer.Option(help="Another bundle to score on the same stacks; repeatable.")
    ] = None,
    z_step_um: Annotated[
        float | None, typer.Option(help="Step of the unseen phantoms. [default: as drawn]")
    ] = None,
    pixel_size_um: Annotated[
        float, typer.Option(help="Pitch the unseen phantoms are recorded at; the field is 500 um wide.")
    ] = 0.5,
    held_out: Annotated[
        int | None,
        typer.Option(help="Unseen phantoms of the family kept out of training. [default: as many]"),
    ] = None,
    missing: Annotated[float, typer.Option(help="Share of the slices that never arrive.")] = 0.0,
    extent_um: Annotated[
        float, typer.Option(help="Leave out slices farther than this below the first one of their stack.")
    ] = math.inf,
    beginnings: Annotated[
        int,
        typer.Option(
            min=0, help="Unseen phantoms of which only the first quarter comes: intervals given so early."
        ),
    ] = 0,
    workers: Annotated[int, typer.Option(help="Worker processes that run the bundle.")] = 2,
) -> None:
    """Score a bundle or any predictions on test stacks, beside baselines, the readers and the geometry."""
    from trainer.data.manifest import load_data_set
    from trainer.data.split import load_split
    from trainer.evaluate import write_evaluation
    from trainer.offline import LeftOut
    from trainer.report import seen_in_training

    def part_of(path: Path | None, split_path: Path | None, part: str):  # type: ignore[no-untyped-def]
        if path is None:
            return None, ()
        loaded = load_data_set(path)
        if split_path is None:
            return loaded, loaded.stacks
        chosen = load_split(split_path, loaded).stack_indices(loaded, part)
        return loaded, tuple(loaded.stacks[index] for index in chosen)

    data_set, stacks = part_of(data, split, "test")
    training = part_of(train_data, train_split, "train")[1]
    result = write_evaluation(
        bundle,
        out,
        predictions=predictions or (),
        stacks=stacks,
        data=data_set,
        single=single,
        training=training,
        n_fresh=fresh_phantoms,
        n_workers=workers,
        live=live,
        beside=beside or (),
        z_step_um=z_step_um,
        pixel_size_um=pixel_size_um,
        n_held_out=held_out,
        left_out=LeftOut(missing, extent_um),
        n_beginnings=beginnings,
    )
    typer.echo((out / "evaluation.md").read_text())
    for one in result["sets"]:
        if "seen_in_training" in one:
            typer.echo(f"rcm-trainer: warning: {seen_in_training(one['seen_in_training'])}", err=True)
