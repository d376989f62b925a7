from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.networks.attention import ToeplitzAttention
from trainer.networks.rcn import RecurrentStrata


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


def drawn(half_width: int) -> RecurrentStrata:
    torch.manual_seed(1)
    network = RecurrentStrata(half_width, n_hidden=8).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def test_decoder_feeds_back_its_own_soft_output() -> None:
    network = drawn(1)
    contexts = torch.randn(1, 6, 16)
    found = torch.softmax(network.decode(contexts), -1)[0].detach()
    previous = torch.zeros(3)
    for n in range(6):
        logits = network.decoder.weight @ torch.cat([contexts[0, n], previous]) + network.decoder.bias
        previous = torch.softmax(logits, 0).detach()
        np.testing.assert_allclose(found[n].numpy(), previous.numpy(), atol=1e-6)


def test_without_width_and_feedback_it_is_the_full_sequence_model() -> None:
    network = drawn(0)
    with torch.no_grad():
        network.decoder.weight[:, 16:] = 0
    embeddings, lengths = torch.randn(3, 7, 256), torch.tensor([7, 3, 5])
    encodings = network.encoder(embeddings, lengths)
    expected = encodings @ network.decoder.weight[:, :16].T + network.decoder.bias
    found = network(embeddings, lengths)
    np.testing.assert_allclose(found.detach().numpy(), expected.detach().numpy(), atol=1e-6)


def test_a_stack_in_a_batch_is_the_stack_alone() -> None:
    network = drawn(2)
    network.input_mean.normal_()
    network.input_scale.uniform_(0.5, 2)
    embeddings, lengths = torch.randn(3, 7, 256), torch.tensor([7, 3, 5])
    batch = network(embeddings, lengths)
    for stack, length in enumerate(lengths.tolist()):
        alone = network(embeddings[stack : stack + 1, :length], lengths[stack : stack + 1])
        together = batch[stack, :length].detach().numpy()
        np.testing.assert_allclose(together, alone[0].detach().numpy(), atol=1e-5)
