from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch

from rcm_daemon.errors import DataSetError
from trainer.run_folder import RunFolder, load_checkpoint, refuse_other_recipe, save_checkpoint, state_digest
from trainer.schedule import learning_rate
from trainer.weight_average import WeightAverage


def test_metrics_are_json_lines_and_a_resumed_run_goes_on_from_its_epoch(tmp_path) -> None:
    run = RunFolder(tmp_path)
    for epoch in (1, 2, 3):
        run.log(epoch, {"loss": 1 / epoch})
    run.close()
    run = RunFolder(tmp_path, n_epochs_done=2)
    run.log(3, {"loss": 0.25})
    run.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["loss"]) for line in lines] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_checkpoint_is_replaced_whole(tmp_path, monkeypatch) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"schema": "rcm-cnn-1", "value": torch.ones(3)})

    def broken(content, file) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {"schema": "rcm-cnn-1"})
    assert torch.equal(load_checkpoint(path, "rcm-cnn-1")["value"], torch.ones(3))


def test_other_files_are_refused(tmp_path) -> None:
    save_checkpoint(tmp_path / "rcn.pt", {"schema": "rcm-rcn-1"})
    with pytest.raises(DataSetError, match=r"of kind rcm-cnn-1, .* is of kind rcm-rcn-1"):
        load_checkpoint(tmp_path / "rcn.pt", "rcm-cnn-1")
    with pytest.raises(DataSetError, match=r"readable file, .*best\.pt"):
        load_checkpoint(tmp_path, "rcm-cnn-1")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(DataSetError, match="file of tensors"):
        load_checkpoint(tmp_path / "text.pt", "rcm-cnn-1")
    torch.save(torch.ones(2), tmp_path / "bare.pt")
    with pytest.raises(DataSetError, match="of kind unknown"):
        load_checkpoint(tmp_path / "bare.pt", "rcm-cnn-1")


def test_a_run_resumes_only_what_it_was(tmp_path) -> None:
    last = {"recipe": {"width": 0.25, "without": ()}, "provenance": {"data_digest": "d", "split_digest": "s"}}
    refuse_other_recipe(
        last, {"width": 0.25, "without": ()}, {"data_digest": "d", "split_digest": "s"}, tmp_path
    )
    with pytest.raises(DataSetError, match="another width, split_digest"):
        refuse_other_recipe(last, {"width": 0.5}, {"data_digest": "d", "split_digest": "t"}, tmp_path)


def test_the_digest_of_a_state_follows_names_and_values() -> None:
    state = {"a": torch.ones(2), "b": torch.zeros(3)}
    assert state_digest(state) == state_digest(dict(reversed(state.items())))
    assert state_digest(state) != state_digest({**state, "a": torch.tensor([1.0, 1.1])})
    assert state_digest(state) != state_digest({"a": state["a"], "c": state["b"]})


def test_the_rate_rises_then_falls_to_nought() -> None:
    rates = [learning_rate(step / 200, 2.0) for step in range(201)]
    assert max(rates) == pytest.approx(2.0)
    assert rates.index(max(rates)) == 10
    assert 0 < rates[0] < 0.1
    assert rates[-1] == pytest.approx(0)
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_the_average_follows_weights_and_running_statistics() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = WeightAverage(network, decay=0.5)
    first = network[0].weight.detach().clone()
    with torch.no_grad():
        network[0].weight += 1
        network[1].running_mean += 4
        network[1].num_batches_tracked += 7
    average.update(network, n_steps=100)
    assert torch.allclose(average.network[0].weight, first + 0.5)
    assert average.network[1].running_mean.tolist() == [2, 2]
    assert average.network[1].num_batches_tracked == 7
    assert not average.network.training
    plain = WeightAverage(network, decay=0.0)
    with torch.no_grad():
        network[0].weight += 1
    plain.update(network, n_steps=1)
    assert torch.equal(plain.network[0].weight, network[0].weight)
