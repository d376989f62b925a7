from __future__ import annotations

import numpy as np
import pytest
import torch

from rcm_daemon.errors import DataSetError
from trainer.networks.inception import EMBEDDING_SIZE, InceptionStrata, scaled

# torchvision's inception_v3 has 27,161,264 parameters, 2,049,000 of them in fc and 3,326,696 in AuxLogits.
N_TRUNK_PARAMETERS = 27_161_264 - 2_049_000 - 3_326_696
N_FIRST_LAYER_RGB = 32 * 3 * 3 * 3


@pytest.fixture(scope="module")
def full() -> InceptionStrata:
    return InceptionStrata(width=1.0, size=75)


def torchvision_state(network: InceptionStrata) -> dict[str, torch.Tensor]:
    """Make what torchvision's file holds: a trunk for colour images, an auxiliary head, a classifier."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, value in network.state_dict().items():
        if name.startswith(("fc.", "fc_embedding.")):
            continue
        shape = (32, 3, 3, 3) if name == "Conv2d_1a_3x3.conv.weight" else value.shape
        drawn = torch.rand(shape, generator=generator)
        state[name] = drawn if value.is_floating_point() else value
    state["AuxLogits.conv0.conv.weight"] = torch.zeros(128, 768, 1, 1)
    state["fc.weight"] = torch.zeros(1000, 2048)
    state["fc.bias"] = torch.zeros(1000)
    return state


def test_trunk_has_torchvisions_parameters(full: InceptionStrata) -> None:
    parameters = dict(full.named_parameters())
    trunk = {name: p for name, p in parameters.items() if not name.startswith(("fc.", "fc_embedding."))}
    n_colour = sum(p.numel() for p in trunk.values()) + N_FIRST_LAYER_RGB - N_FIRST_LAYER_RGB // 3
    assert n_colour == N_TRUNK_PARAMETERS
    assert len(trunk) == 94 * 3  # 94 convolutions, each with the two parameters of its batch norm
    shapes = {
        "Conv2d_4a_3x3.conv.weight": (192, 80, 3, 3),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_5d.branch3x3dbl_3.bn.weight": (96,),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3dbl_1.conv.weight": (448, 1280, 1, 1),
        "Mixed_7c.branch3x3_2b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1),
    }
    assert {name: tuple(parameters[name].shape) for name in shapes} == shapes
    assert full.Conv2d_1a_3x3.bn.eps == 0.001
    assert full.fc_embedding.weight.shape == (EMBEDDING_SIZE, 2048)


def test_imagenet_weights_load_with_the_first_layer_summed_over_colour(
    full: InceptionStrata, tmp_path
) -> None:
    state = torchvision_state(full)
    path = tmp_path / "inception_v3.pth"
    torch.save(state, path)
    fc = full.fc.weight.clone()
    full.load_imagenet(path)
    assert torch.equal(full.Mixed_7c.branch1x1.conv.weight, state["Mixed_7c.branch1x1.conv.weight"])
    assert torch.equal(full.Mixed_5b.branch1x1.bn.running_var, state["Mixed_5b.branch1x1.bn.running_var"])
    summed = state["Conv2d_1a_3x3.conv.weight"].sum(1, keepdim=True)
    assert torch.equal(full.Conv2d_1a_3x3.conv.weight, summed)
    assert torch.equal(full.fc.weight, fc)
    neighbours = InceptionStrata(width=1.0, size=75, n_slices=3)
    neighbours.load_imagenet(path)
    assert torch.equal(neighbours.Conv2d_1a_3x3.conv.weight, state["Conv2d_1a_3x3.conv.weight"])


def test_imagenet_weights_that_do_not_fit_are_refused(full: InceptionStrata, tmp_path) -> None:
    state = torchvision_state(full)
    del state["Mixed_6c.branch1x1.conv.weight"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(DataSetError, match=r"1 parameters .* Mixed_6c\.branch1x1\.conv\.weight"):
        full.load_imagenet(tmp_path / "short.pth")
    with pytest.raises(DataSetError, match="do not fit"):
        InceptionStrata(width=0.25, size=75).load_imagenet(tmp_path / "short.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(DataSetError, match="file of tensors"):
        full.load_imagenet(tmp_path / "text.pth")


def test_embedding_is_taken_before_the_non_linearity() -> None:
    torch.manual_seed(0)
    network = InceptionStrata(width=0.125, size=75).eval()
    slices = torch.randint(0, 256, (3, 75, 75), dtype=torch.uint8)
    with torch.inference_mode():
        embeddings = network.embed(slices)
        logits = network(slices)
    assert embeddings.shape == (3, EMBEDDING_SIZE)
    assert (embeddings < 0).any()
    expected = embeddings.relu() @ network.fc.weight.T + network.fc.bias
    np.testing.assert_allclose(logits.numpy(), expected.detach().numpy(), atol=1e-6)


def test_width_rounds_channels_to_eights() -> None:
    assert [scaled(n, 0.25) for n in (32, 48, 80, 192, 448)] == [8, 16, 16, 48, 112]
    assert scaled(80, 1.0) == 80


def test_too_small_an_input_is_refused() -> None:
    with pytest.raises(DataSetError, match="at least 75 pixels"):
        InceptionStrata(width=0.25, size=74)
