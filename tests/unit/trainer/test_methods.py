from __future__ import annotations

import pytest

from rcm_daemon.errors import DataSetError
from trainer.methods import METHODS, TABLE_1, method_of
from trainer.rcn_recipe import preset
from trainer.train_cnn import CnnRecipe


def test_the_table_has_the_papers_rows_and_the_discussions_encoders() -> None:
    assert [row.title for row in TABLE_1] == [
        *(f"Toeplitz Att. (D = {d})" for d in (1, 7, 0, 3, 2, 5)),
        *("Global Att.", "Full-Seq. (Bidir. GRU)", "Partial-Seq. (Bidir. GRU)", "IV3-Context"),
        *("Inception-V3", "Hames et al.", "Kaur et al."),
    ]
    others = [name for name, row in METHODS.items() if row not in TABLE_1]
    full = ["full-gru", "full-birnn", "full-rnn"]
    assert others == [*full, *(name.replace("full", "partial") for name in full), "somoza", "live"]


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.trained_by == "rcn"])
@pytest.mark.parametrize("recipe_name", ["ours", "paper"])
def test_every_recurrent_method_is_a_recipe_that_sees_what_it_says(name: str, recipe_name: str) -> None:
    row = METHODS[name]
    network = preset(recipe_name, row.changes).architecture
    assert (network.window == 3) == (row.sees == "partial stack")
    assert (network.attention == "none") == name.startswith(("full", "partial"))
    assert network.max_slices == 71 or name != "global"


def test_a_recipe_that_cannot_be_built_is_refused_at_once() -> None:
    with pytest.raises(DataSetError, match="longest stack, got 0"):
        preset("ours", METHODS["global"].changes, max_slices=0)


def test_every_convolutional_method_is_a_recipe() -> None:
    rows = [row for row in METHODS.values() if row.trained_by == "cnn"]
    slices = {row.name: CnnRecipe(**row.changes).n_slices for row in rows}
    assert slices == {"iv3-context": 3, "inception-v3": 1}


def test_a_command_takes_only_what_it_trains() -> None:
    assert method_of(None, "rcn") == {}
    assert method_of("toeplitz-3", "rcn")["half_width"] == 3
    with pytest.raises(DataSetError, match="cnn trains must be one of iv3-context, inception-v3, got hames"):
        method_of("hames", "cnn")
