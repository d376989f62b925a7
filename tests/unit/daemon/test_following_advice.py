"""Whose answers a simulated microscope that follows advice takes for its own."""

from __future__ import annotations

import itertools

import pytest

from rcm_daemon import microscope
from rcm_daemon.core.pseudonyms import Pseudonyms
from rcm_daemon.errors import RcmError


def answer(run_id="mine", stack_id="phantom-7", n_slices=1, advice="continue"):
    return {
        "run_id": run_id,
        "stack_id": stack_id,
        "n_slices": n_slices,
        "n_rejected": 0,
        "advice": advice,
        "advice_z_um": 0.0,
    }


def test_a_stack_of_the_same_name_left_by_an_earlier_run_is_another(monkeypatch) -> None:
    came = [answer("old", n_slices=20, advice="stop"), None, answer(stack_id="phantom-6"), answer()]
    monkeypatch.setattr(microscope, "results", lambda _: iter(came))
    assert microscope._advice(None, "mine", "phantom-7", 1) == ("continue", 0.0)


def test_results_under_pseudonyms_are_told_at_once(monkeypatch) -> None:
    pseudonyms = Pseudonyms(bytes(32))
    came = answer(pseudonyms.of("mine"), pseudonyms.of("phantom-7"))
    monkeypatch.setattr(microscope, "results", lambda _: iter([came]))
    with pytest.raises(
        RcmError, match=f"must come as phantom-7, one came as {came['stack_id']}: a daemon with pseudonymise"
    ):
        microscope._advice(None, "mine", "phantom-7", 1)


def test_others_answers_do_not_make_it_wait_for_ever(monkeypatch) -> None:
    monkeypatch.setattr(microscope, "results", lambda _: itertools.repeat(answer("old")))
    monkeypatch.setattr(microscope, "ADVICE_PATIENCE_S", 0.0)
    with pytest.raises(RcmError, match="must answer every slice, no answer came to 1 of phantom-7"):
        microscope._advice(None, "mine", "phantom-7", 1)
