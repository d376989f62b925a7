from __future__ import annotations

import pytest

from trainer.progress import progress_bar, whole_run


def test_a_step_moves_the_whole_by_its_share(capsys: pytest.CaptureFixture[str]) -> None:
    with whole_run("everything", 40.0) as whole:
        whole.begin("first", 10.0)
        with progress_bar("inner", 4, "pieces") as advance:
            advance(2, "half")
            assert whole.progress.tasks[0].completed == 5
            assert [task.description for task in whole.progress.tasks] == ["everything", "inner"]
            advance(2, "")
        assert len(whole.progress.tasks) == 1
        whole.begin("second", 30.0)
        assert whole.progress.tasks[0].completed == 10
        assert whole.progress.tasks[0].fields["text"] == "second"
    assert whole.progress.tasks[0].completed == 40
    with progress_bar("alone", 1, "pieces") as advance:  # outside, a bar of its own again
        advance(1, "epoch 2/2: loss 0.2345, accuracy 0.891")
    assert "1/1 pieces" in (said := capsys.readouterr().err)
    assert "epoch 2/2: loss 0.2345, accuracy 0.891" in said  # nothing is squeezed out


def test_a_broken_run_does_not_claim_to_be_done() -> None:
    with pytest.raises(ValueError, match="broken"), whole_run("everything", 10.0) as whole:
        whole.begin("first", 10.0)
        raise ValueError("broken")
    assert whole.progress.tasks[0].completed == 0
