"""What every training does around its epochs: resume, validate, log, keep the best and the last snapshot."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from trainer.progress import progress_bar
from trainer.run_folder import BEST_NAME, LAST_NAME, RunFolder, load_checkpoint, refuse_other_recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainer.rcn_recipe import RcnRecipe
    from trainer.train_cnn import CnnRecipe
    from trainer.weight_average import WeightAverage

    Advance = Callable[[int, str], None]

Network = TypeVar("Network", bound=torch.nn.Module)


def run_epochs(
    out: Path,
    title: str,
    recipe: CnnRecipe | RcnRecipe,
    about: dict[str, Any],
    network: Network,
    average: WeightAverage[Network],
    optimizer: torch.optim.Optimizer,
    *,
    n_batches: int,
    train: Callable[[int, Advance, float], dict[str, float]],
    validate: Callable[[Network], dict[str, float]],
    rank: Callable[[dict[str, float]], tuple[float, ...]],
    resume: bool,
) -> dict[str, float]:
    """Train to the recipe's last epoch, from the first one or from the last checkpoint.

    Parameters
    ----------
    out
        The run's folder: `last.pt`, `best.pt`, `metrics.jsonl`, `tensorboard/`.
    title
        What the progress bar says.
    recipe
        What is done.
    about
        What stands in every checkpoint beside it: `schema`, `provenance`, `z_step_um`.
    network, average, optimizer
        What is trained; on resume all three are set to where they were.
    n_batches
        Steps of an epoch.
    train
        Trains one epoch (its number, from 1; the progress bar; the best accuracy so far) and gives what to
        log.
    validate
        Measures the weight average; its numbers are logged as `validation_<name>`.
    rank
        Of two measurements the one that ranks higher is the better one.
    resume
        Go on from `last.pt`.

    Returns
    -------
    dict
        Measurement of the best snapshot.

    Raises
    ------
    DataSetError
        If the run to resume was made with another recipe or other data.
    """
    first_epoch, best = 1, dict[str, float]()
    if resume:
        last = load_checkpoint(out / LAST_NAME, about["schema"])
        last["recipe"] = asdict(type(recipe)(**last["recipe"]))  # an older one lacks what was added since
        refuse_other_recipe(last, asdict(recipe), about["provenance"], out)
        network.load_state_dict(last["network"])
        average.network.load_state_dict(last["average"])
        optimizer.load_state_dict(last["optimizer"])
        first_epoch, best = last["epoch"] + 1, last["best"]
        about = {**about, "provenance": {**about["provenance"], **_origin(last["provenance"])}}
    run = RunFolder(out, first_epoch - 1)
    with progress_bar(title, (recipe.n_epochs - first_epoch + 1) * n_batches, "batches") as advance:
        for epoch in range(first_epoch, recipe.n_epochs + 1):
            values = train(epoch, advance, best.get("accuracy", -1.0))
            measured = validate(average.network)
            run.log(epoch, values | {f"validation_{name}": value for name, value in measured.items()})
            shared = {**about, "recipe": asdict(recipe), "epoch": epoch}
            if not best or rank(measured) > rank(best):
                best = measured
                run.save(BEST_NAME, {**shared, "network": average.network.state_dict(), "metrics": best})
            states = {"network": network.state_dict(), "average": average.network.state_dict()}
            run.save(LAST_NAME, {**shared, **states, "optimizer": optimizer.state_dict(), "best": best})
    run.close()
    return best


def _origin(provenance: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in provenance.items() if key == "started_from"}
