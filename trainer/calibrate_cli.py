"""The command `rcm-trainer calibrate`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 (typer reads the annotations)
from typing import Annotated

import typer

from trainer.options import (  # noqa: TC001 (typer reads the annotations)
    CacheOption,
    DataOption,
    DeviceOption,
    ThreadsOption,
    WorkersOption,
)


def calibrate(
    data: DataOption,
    cnn: Annotated[Path, typer.Option(help="Run folder or checkpoint of the CNN.")],
    rcn: Annotated[Path, typer.Option(help="Run folder of the live network trained on it.")],
    split: Annotated[Path | None, typer.Option(help="A split.json. [default: the network's own]")] = None,
    part: Annotated[
        str, typer.Option(help="Part of the split: patients nothing else has used.")
    ] = "calibration",
    beginnings: Annotated[
        int,
        typer.Option(
            min=0,
            help="For networks trained on phantoms: more of them, of which only the first quarter comes, "
            "for the intervals given in it.",
        ),
    ] = 0,
    phantoms: Annotated[
        int, typer.Option(min=0, help="Likewise, whole ones, for the intervals given after it.")
    ] = 0,
    for_good: Annotated[
        bool,
        typer.Option(
            "--for-good", help="What was first said of a boundary is kept, whatever later slices say."
        ),
    ] = False,
    cache: CacheOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    workers: WorkersOption = 2,
) -> None:
    """Calibrate a live network's probabilities and intervals on patients of their own, before its export."""
    from rcm_daemon.errors import DataSetError
    from trainer.beginnings import BEGINNINGS
    from trainer.calibrate import calibrate as fit
    from trainer.calibrate import check_patients, write_calibration
    from trainer.calibration_phantoms import calibration_phantoms
    from trainer.data.manifest import load_data_set
    from trainer.data.prepared import prepare
    from trainer.data.split import PARTS, load_split
    from trainer.embeddings import embed_set
    from trainer.offline import WHOLE, graph_runner
    from trainer.picture_domain import picture_domain
    from trainer.precision import choose_device, set_threads
    from trainer.train_cnn import load_cnn
    from trainer.train_rcn import load_rcn

    if part not in PARTS:
        raise DataSetError(f"a part of a split must be one of {', '.join(PARTS)}, got {part}")
    set_threads(threads)
    data_set = load_data_set(data)
    if (beginnings or phantoms) and not data_set.is_phantom:
        raise DataSetError(
            f"--beginnings and --phantoms are for sets of phantoms, {data_set.path} holds recorded stacks"
        )
    network = load_cnn(cnn)[0]
    recurrent = load_rcn(rcn)[0]
    if recurrent.likelihood is None:
        raise DataSetError(f"a calibration is for networks of the preset live, {rcn} is none")
    indices = load_split(split or rcn / "split.json", data_set).stack_indices(data_set, part).tolist()
    stacks = [data_set.stacks[index] for index in indices]
    check_patients(stacks)
    where = cache or data_set.path.parent / "cache"
    prepared = prepare(data_set, network.size, where, workers)
    embeddings_TE = embed_set(network, prepared, {0: indices}, where, choose_device(device))[0]
    starts = data_set.starts
    begun, whole = (
        calibration_phantoms(data_set, cnn, n_stacks, workers, where, left_out) if n_stacks else []
        for n_stacks, left_out in ((beginnings, BEGINNINGS), (phantoms, WHOLE))
    )
    found = fit(
        stacks,
        [embeddings_TE[starts[index] : starts[index + 1]] for index in indices],
        graph_runner(recurrent),
        recurrent.likelihood.prior(),
        picture_domain(stacks),
        begun,
        whole,
        for_good=for_good,
    )
    path = write_calibration(rcn, found, recurrent)
    typer.echo(f"wrote {path}: {found.n_stacks} stacks of {found.n_patients} patients")
    typer.echo(f"temperature {found.temperature:g}")
    for kind in ("inside", "forecast"):
        levels = getattr(found.parameters, kind)
        for k, boundary in enumerate(("epidermis-DEJ", "DEJ-dermis")):
            quarters = "  ".join(f"{low:.3f}-{high:.3f}" for low, high in (q[k] for q in levels.by_share))
            low, high = levels.overall[k]
            typer.echo(f"{kind:8} {boundary:13} levels {low:.3f}-{high:.3f}, by quarter {quarters}")
    typer.echo(f"settled from a probability of {found.parameters.settled_probability:g}")
