from __future__ import annotations

import numpy as np
import pytest
import torch

from rcm_daemon.errors import DataSetError
from trainer.networks.attention import GlobalAttention, ToeplitzAttention
from trainer.networks.rcn import Architecture, RecurrentStrata


@pytest.mark.parametrize("half_width", [0, 1, 2, 3, 5, 7])
@pytest.mark.parametrize("n_slices", [1, 2, 6, 20])
def test_toeplitz_attention_equals_a_plain_loop(half_width: int, n_slices: int) -> None:
    torch.manual_seed(half_width)
    attention = ToeplitzAttention(half_width).double()
    torch.nn.init.normal_(attention.logits)
    encodings = torch.randn(2, n_slices + 3, 4, dtype=torch.float64)
    lengths = [n_slices, max(1, n_slices - 1)]
    there = torch.arange(n_slices + 3).view(1, -1, 1) < torch.tensor(lengths).view(-1, 1, 1)
    found = attention(encodings, there).detach().numpy()
    kernel = torch.softmax(attention.logits, 0).detach().numpy()
    for stack, length in enumerate(lengths):
        for n in range(length):
            neighbours = [m for m in range(n - half_width, n + half_width + 1) if 0 <= m < length]
            weights = np.array([kernel[m - n + half_width] for m in neighbours])
            expected = (weights[:, None] * encodings[stack, neighbours].numpy()).sum(0) / weights.sum()
            np.testing.assert_allclose(found[stack, n], expected, atol=1e-6)
        assert (found[stack, length:] == 0).all()


def test_kernel_is_a_convex_combination_whatever_the_logits() -> None:
    attention = ToeplitzAttention(3)
    torch.nn.init.normal_(attention.logits, std=10)
    kernel = attention.kernel()
    assert (kernel >= 0).all()
    assert abs(kernel.sum().item() - 1) < 1e-6


ARCHITECTURES = {
    "toeplitz": Architecture(half_width=2, n_hidden=8),
    "global": Architecture("global", max_slices=9, n_hidden=8),
    "full": Architecture("none", n_hidden=8),
    "full, downward": Architecture("none", cell="rnn", bidirectional=False, n_hidden=8),
    "partial": Architecture("none", window=3, n_hidden=8),
    "partial, downward": Architecture("none", window=3, bidirectional=False, n_hidden=8),
}


def drawn(architecture: Architecture) -> RecurrentStrata:
    torch.manual_seed(1)
    network = RecurrentStrata(architecture).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def test_global_attention_equals_a_plain_loop_over_the_real_slices() -> None:
    torch.manual_seed(0)
    attention = GlobalAttention(4, 5, 9).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    encodings, lengths = torch.randn(2, 7, 4, dtype=torch.float64), [7, 3]
    there = torch.arange(7).view(1, -1, 1) < torch.tensor(lengths).view(-1, 1, 1)
    found = attention(encodings, there).detach().numpy()
    for stack, length in enumerate(lengths):
        rows = encodings[stack, :length].numpy()
        for n in range(length):
            logits = attention.places(torch.tanh(attention.hidden(encodings[stack, n])))[:length]
            weights = torch.exp(logits).detach().numpy()
            expected = (weights[:, None] / weights.sum() * rows).sum(0)
            np.testing.assert_allclose(found[stack, n], expected, atol=1e-9)
        assert (found[stack, length:] == 0).all()
    with pytest.raises(DataSetError, match="at most 9 slices, got 10"):
        attention(torch.zeros(1, 10, 4, dtype=torch.float64), torch.ones(1, 10, 1, dtype=torch.bool))


def test_decoder_feeds_back_its_own_soft_output() -> None:
    network = drawn(Architecture(n_hidden=8))
    contexts = torch.randn(1, 6, 16)
    found = torch.softmax(network.decode(contexts), -1)[0].detach()
    previous = torch.zeros(3)
    for n in range(6):
        logits = network.decoder.weight @ torch.cat([contexts[0, n], previous]) + network.decoder.bias
        previous = torch.softmax(logits, 0).detach()
        np.testing.assert_allclose(found[n].numpy(), previous.numpy(), atol=1e-6)


def test_global_attentions_decoder_is_torchs_gru_over_context_and_own_output() -> None:
    network = drawn(ARCHITECTURES["global"])
    contexts = torch.randn(1, 6, 16)
    found = torch.softmax(network.decode(contexts), -1)[0].detach()
    previous, state = torch.zeros(1, 3), torch.zeros(1, 8)
    for n in range(6):
        state = network.decoder_gru(torch.cat([contexts[:, n], previous], 1), state)
        previous = torch.softmax(network.decoder(state), 1).detach()
        np.testing.assert_allclose(found[n].numpy(), previous[0].numpy(), atol=1e-6)


def test_toeplitz_of_width_0_with_its_feedback_zeroed_is_the_full_sequence_model() -> None:
    toeplitz, full = drawn(Architecture(half_width=0, n_hidden=8)), drawn(ARCHITECTURES["full"])
    with torch.no_grad():
        toeplitz.decoder.weight[:, 16:] = 0
        full.decoder.weight.copy_(toeplitz.decoder.weight[:, :16])
        full.decoder.bias.copy_(toeplitz.decoder.bias)
    full.encoder.load_state_dict(toeplitz.encoder.state_dict())
    embeddings, lengths = torch.randn(3, 7, 256), torch.tensor([7, 3, 5])
    found, expected = toeplitz(embeddings, lengths), full(embeddings, lengths)
    for stack, length in enumerate(lengths.tolist()):
        difference = (found[stack, :length] - expected[stack, :length]).abs().max().item()
        assert difference < 1e-6


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("cell", ["gru", "rnn"])
def test_a_partial_sequence_is_the_cells_last_state_over_the_neighbours_there_are(
    cell: str, bidirectional: bool
) -> None:
    network = drawn(Architecture("none", window=3, cell=cell, bidirectional=bidirectional, n_hidden=8))
    kind = torch.nn.GRU if cell == "gru" else torch.nn.RNN
    reference = kind(256, 8, batch_first=True, bidirectional=bidirectional)
    reference.load_state_dict(network.encoder.state_dict())
    embeddings, lengths = torch.randn(2, 6, 256), torch.tensor([6, 2])
    found = network(embeddings, lengths).detach().numpy()
    for stack, length in enumerate(lengths.tolist()):
        for n in range(length):
            window = embeddings[stack : stack + 1, max(0, n - 1) : min(length, n + 2)]
            expected = network.decoder(reference(window)[1].flatten()).detach().numpy()
            np.testing.assert_allclose(found[stack, n], expected, atol=1e-5)


def test_a_downward_network_does_not_see_what_is_below() -> None:
    network = drawn(ARCHITECTURES["full, downward"])
    embeddings, lengths = torch.randn(1, 7, 256), torch.tensor([7])
    before = network(embeddings, lengths)[0, :4]
    embeddings[0, 4:] += 1
    assert torch.equal(before, network(embeddings, lengths)[0, :4])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_stack_in_a_batch_is_the_stack_alone(name: str) -> None:
    network = drawn(ARCHITECTURES[name])
    network.input_mean.normal_()
    network.input_scale.uniform_(0.5, 2)
    embeddings, lengths = torch.randn(3, 7, 256), torch.tensor([7, 3, 5])
    batch = network(embeddings, lengths)
    for stack, length in enumerate(lengths.tolist()):
        alone = network(embeddings[stack : stack + 1, :length], lengths[stack : stack + 1])
        together = batch[stack, :length].detach().numpy()
        np.testing.assert_allclose(together, alone[0].detach().numpy(), atol=1e-5)


def test_the_penalty_takes_the_decoders_recurrent_weights_too() -> None:
    network = drawn(ARCHITECTURES["global"])
    extra = network.recurrent_l1() - network.encoder.recurrent_l1()
    assert extra.item() == pytest.approx(network.decoder_gru.weight_hh.abs().sum().item(), rel=1e-5)


def test_impossible_architectures_are_refused() -> None:
    with pytest.raises(DataSetError, match="longest stack"):
        Architecture("global")
    with pytest.raises(DataSetError, match="odd number"):
        Architecture("none", window=4)
    with pytest.raises(DataSetError, match="without attention"):
        Architecture("toeplitz", window=3)
