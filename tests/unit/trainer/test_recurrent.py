from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.networks.recurrent import RecurrentLayer

LENGTHS = torch.tensor([9, 1, 4, 8])


def drawn(recurrent_dropout: float = 0.0, cell: str = "gru", bidirectional: bool = True) -> RecurrentLayer:
    torch.manual_seed(0)
    gru = RecurrentLayer(6, 5, recurrent_dropout, cell, bidirectional)
    for parameter in gru.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return gru


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("cell", ["gru", "rnn"])
def test_equals_torchs_layer_on_packed_sequences(cell: str, bidirectional: bool) -> None:
    gru = drawn(0.0, cell, bidirectional).eval()
    kind = torch.nn.GRU if cell == "gru" else torch.nn.RNN
    reference = kind(6, 5, batch_first=True, bidirectional=bidirectional)
    reference.load_state_dict(gru.state_dict())
    x = torch.randn(4, 9, 6)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(reference(packed)[0], batch_first=True)
    np.testing.assert_allclose(gru(x, LENGTHS).detach().numpy(), expected.detach().numpy(), atol=1e-6)


def test_padding_changes_nothing() -> None:
    gru = drawn().eval()
    x = torch.randn(1, 4, 6)
    alone = gru(x, torch.tensor([4]))
    padded = gru(torch.cat([x, 1e3 * torch.randn(1, 5, 6)], 1), torch.tensor([4]))
    np.testing.assert_allclose(alone.detach().numpy(), padded[:, :4].detach().numpy(), atol=1e-6)
    assert (padded[:, 4:] == 0).all()


def test_recurrent_dropout_is_one_mask_a_sequence_and_direction_inside_the_products() -> None:
    gru = drawn(recurrent_dropout=0.5).train()
    x = torch.randn(2, 7, 6)
    lengths = torch.tensor([7, 7])
    torch.manual_seed(5)
    found = gru(x, lengths)
    torch.manual_seed(5)
    masks = torch.nn.functional.dropout(torch.ones(2, 2, 5), 0.5)
    assert set(masks.unique().tolist()) == {0.0, 2.0}
    for direction, suffix in enumerate(("", "_reverse")):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = {name: gru.get_parameter(f"{name}_l0{suffix}") for name in names}
        for stack in range(2):
            state = torch.zeros(5)
            order = range(7) if direction == 0 else reversed(range(7))
            for n in order:
                own = (weights["weight_ih"] @ x[stack, n] + weights["bias_ih"]).split(5)
                # The same mask at every slice, before the product with the recurrent weights ...
                fed = (weights["weight_hh"] @ (masks[direction, stack] * state) + weights["bias_hh"]).split(5)
                reset, update = torch.sigmoid(own[0] + fed[0]), torch.sigmoid(own[1] + fed[1])
                candidate = torch.tanh(own[2] + reset * fed[2])
                # ... while the state carried on stays whole.
                state = (1 - update) * candidate + update * state
                part = found[stack, n, 5 * direction : 5 * direction + 5]
                np.testing.assert_allclose(part.detach().numpy(), state.detach().numpy(), atol=1e-5)


def test_no_dropout_in_evaluation_and_l1_is_the_plain_sum() -> None:
    gru, plain = drawn(0.5).eval(), drawn(0.0).eval()
    x = torch.randn(4, 9, 6)
    assert torch.equal(gru(x, LENGTHS), plain(x, LENGTHS))
    total = gru.weight_hh_l0.abs().sum() + gru.weight_hh_l0_reverse.abs().sum()
    assert abs(gru.recurrent_l1().item() - total.item()) < 1e-4
