"""Weights to start a training from: read back from the two graphs of a bundle into the torch networks.

A bundle holds no checkpoint, but its graphs hold every weight. Two things were folded into others when they
were written, and are parted again here so that the network says at first what the bundle says:

- batch norm into the convolution before it: its statistics are taken anew from training slices, and its scale
  and shift set so that nothing changes (`settle_norms`);
- the standardisation of the embeddings into the recurrent network's input weights: the new training set's
  mean and scale are taken, and the input weights changed to match (`take_rcn`). (In a segmental network
  that holds for slices of full weight: others are drawn towards the new mean.)

The classifier of a CNN under a recurrent network is not in the bundle. It is fitted to the CNN's embeddings
of training slices first (`fit_classifier`): one drawn at random would pull at good features at random.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from sklearn.linear_model import LogisticRegression

from rcm_daemon.bundle.location import default_bundle_path
from rcm_daemon.bundle.manifest import MANIFEST_FILE
from rcm_daemon.bundle.verify import VerifiedBundle, load_verified
from rcm_daemon.errors import DataSetError
from trainer.networks.attention import ToeplitzAttention
from trainer.networks.segmental import SegmentalLikelihood
from trainer.offline import check_same_input
from trainer.onnx_recurrent import rcn_graph

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rcm_daemon.core.posterior import BoundaryPrior
    from trainer.networks.inception import InceptionStrata
    from trainer.networks.rcn import RecurrentStrata

CLASSIFIER = ("fc.weight", "fc.bias")
INVERSE_PENALTY = 0.1
"""Of the fitted classifier: on embeddings of 286 phantom slices 0.01 to 0.1 did alike, 1 and more worse."""
CALIBRATION = ("smallest", "temperature")
"""Constants behind the network, fitted to patients it was not trained on: what is fine-tuned loses them."""
NORM_FLOOR = 1e-3
"""What Inception-V3's batch norms add to every variance."""


def starting_point(path: str | None) -> Path | None:
    """Return the path that a training starts from; `default` is the bundle that comes along."""
    if path is None:
        return None
    return default_bundle_path() if path == "default" else Path(path)


def is_bundle(path: Path) -> bool:
    """Whether a path is a bundle's folder, not a run's or a checkpoint."""
    return (path / MANIFEST_FILE).is_file()


def open_start(folder: Path) -> VerifiedBundle:
    """Read a bundle to start from.

    Raises
    ------
    RcmError
        If it is damaged, or takes other fields than the trainer prepares.
    """
    check_same_input([folder])
    return load_verified(folder)


def origin(start: VerifiedBundle | Mapping[str, Any]) -> str:
    """Words for what a training started from: a bundle, or a checkpoint of that provenance."""
    if isinstance(start, VerifiedBundle):
        return f"{start.manifest.name} {start.manifest.version} ({start.manifest.notice})"
    return f"a checkpoint trained on {'phantoms' if start['phantom'] else 'recorded stacks'}"


def take_state(network: torch.nn.Module, state: Mapping[str, torch.Tensor], where: Path) -> None:
    """Load parameters, those that `state` lacks staying as they are.

    Raises
    ------
    DataSetError
        If one is unknown or of another shape.
    """
    own = network.state_dict()
    faults = [name for name, value in state.items() if name not in own or own[name].shape != value.shape]
    if faults:
        raise _misfit(where, faults)
    network.load_state_dict({**own, **state})


def take_cnn(network: InceptionStrata, bundle: VerifiedBundle) -> bool:
    """Take a CNN's weights from a bundle; `settle_norms` must follow.

    Returns
    -------
    bool
        Whether its classifier was there; otherwise `fit_classifier` must follow too.

    Raises
    ------
    DataSetError
        If the bundle's CNN has another width or number of slices, or is no Inception-V3 of this program.
    """
    graph = onnx.load_from_string(bundle.files["cnn.onnx"]).graph
    weights = _constants(graph)
    state = {
        name.removeprefix("network."): value for name, value in weights.items() if "fc_embedding" in name
    }
    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) == 3 and set(node.input[1:]) <= weights.keys():
            block = node.name.strip("/").removesuffix("/conv/Conv").replace("/", ".")
            bias = weights[node.input[2]]
            one = torch.ones_like(bias)
            state[f"{block}.conv.weight"] = weights[node.input[1]]
            # With its floor of 0.001 the deviation is 1: the norm adds the bias and does nothing else.
            norm = {"weight": one, "bias": bias, "running_mean": 0 * one, "running_var": one - NORM_FLOOR}
            state |= {f"{block}.bn.{name}": value for name, value in norm.items()}
    head = _constants(onnx.load_from_string(bundle.files["rcn.onnx"]).graph)
    if "head_weight" in head:
        state |= {"fc.weight": head["head_weight"].T, "fc.bias": head["head_bias"]}
    needed = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    missing = sorted(needed - set(CLASSIFIER) - state.keys())
    if missing:
        raise _misfit(bundle.folder, missing)
    take_state(network, state, bundle.folder)
    return set(CLASSIFIER) <= state.keys()


@torch.no_grad()
def settle_norms(network: InceptionStrata, field_BSS: torch.Tensor) -> None:
    """Set every batch norm's statistics to those of some slices, and its scale and shift to say the same.

    Parameters
    ----------
    network
        The CNN; what it gives in evaluation does not change.
    field_BSS
        Training slices in grey levels 0..255, a batch or more.
    """

    def settle(norm: torch.nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        if norm.running_mean is None or norm.running_var is None:
            return
        variance_C, mean_C = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        gain_C = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        offset_C = norm.bias - gain_C * norm.running_mean
        norm.running_mean.copy_(mean_C)
        norm.running_var.copy_(variance_C)
        norm.weight.copy_(gain_C * torch.sqrt(variance_C + norm.eps))
        norm.bias.copy_(offset_C + gain_C * mean_C)

    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    hooks: list[Any] = [norm.register_forward_pre_hook(settle) for norm in norms]
    training = network.training
    network.eval().embed(field_BSS)
    network.train(training)
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def fit_classifier(network: InceptionStrata, field_BSS: torch.Tensor, labels: np.ndarray) -> None:
    """Set a CNN's classifier to the logistic regression of strata on its embeddings.

    Parameters
    ----------
    network
        The CNN.
    field_BSS
        Training slices in grey levels 0..255.
    labels
        Their strata; of one that does not occur the classifier knows nothing.
    """
    if len(set(labels.tolist())) < 2:
        return
    training = network.training
    network.eval()
    embeddings = torch.cat([network.embed(part) for part in torch.split(field_BSS, 64)])
    network.train(training)
    regression = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(embeddings.relu().numpy(), labels)
    weights, biases = np.atleast_2d(regression.coef_), np.atleast_1d(regression.intercept_)
    if len(weights) == 1:  # of two strata scikit-learn gives the second one's margin over the first
        weights, biases = np.concatenate([-weights, weights]) / 2, np.concatenate([-biases, biases]) / 2
    network.fc.weight.zero_()
    network.fc.bias.zero_()
    network.fc.weight[regression.classes_] = torch.from_numpy(weights).float()
    network.fc.bias[regression.classes_] = torch.from_numpy(biases).float()


@torch.no_grad()
def take_rcn(
    network: RecurrentStrata, graph: onnx.GraphProto, where: Path, prior: BoundaryPrior | None = None
) -> None:
    """Take a recurrent network's weights from an rcn.onnx, keeping `network`'s own input mean and scale.

    Parameters
    ----------
    network
        The network to start; its `input_mean` and `input_scale` are set.
    graph
        The graph, of a bundle or just written from a checkpoint.
    where
        What it was read from, for the error.
    prior
        That of a segmental network, where it is known.

    Raises
    ------
    DataSetError
        If the graph is of another method or size.
    """
    given = _constants(graph)
    wanted = _constants(rcn_graph(copy.deepcopy(network)).graph)
    faults = [name for name, value in wanted.items() if name not in given or given[name].shape != value.shape]
    faults += [name for name in given if name not in wanted and name not in CALIBRATION]
    if faults:
        raise _misfit(where, faults)
    encoder, n_hidden = network.encoder, network.encoder.n_hidden

    def gates(values: torch.Tensor) -> torch.Tensor:
        if encoder.cell == "rnn":
            return values
        # ONNX orders the gates update, reset, candidate; torch reset, update, candidate.
        update, reset, candidate = torch.split(values, n_hidden)
        return torch.cat([reset, update, candidate])

    for direction, suffix in enumerate(encoder.suffixes):
        weight_ih = gates(given["encoder_w"][direction]).double()
        bias_ih, bias_hh = (gates(part) for part in given["encoder_b"][direction].chunk(2))
        # The graph takes embeddings as they are (a segmental network's about their mean), the network
        # standardised ones: the same sum either way.
        shift = network.input_mean.double() - given.get("mean", torch.zeros(1)).double()
        bias_ih = bias_ih.double() + weight_ih[:, : len(shift)] @ shift
        weight_ih[:, : len(shift)] *= network.input_scale.double()
        values = {
            "weight_ih": weight_ih,
            "weight_hh": gates(given["encoder_r"][direction]),
            "bias_ih": bias_ih,
            "bias_hh": bias_hh,
        }
        for name, value in values.items():
            encoder.get_parameter(f"{name}_l0{suffix}").copy_(value)
    if isinstance(network.attention, ToeplitzAttention):
        if "kernel" in given:
            network.attention.logits.copy_(given["kernel"].flatten().clamp(min=1e-30).log())
    elif network.attention is not None:
        for layer, name in ((network.attention.hidden, "hidden"), (network.attention.places, "places")):
            layer.weight.copy_(given[f"{name}_weight"].T)
            layer.bias.copy_(given[f"{name}_bias"])
    if network.evidence is not None:
        network.evidence.weight.copy_(given["evidence_weight"].T)
        network.evidence.bias.copy_(given["evidence_bias"])
        if prior is not None:
            network.likelihood = SegmentalLikelihood(prior)
    decoder, gru = network.decoder, network.decoder_gru
    decoder.bias.copy_(given["decoder_bias"])
    if gru is not None:
        decoder.weight.copy_(given["decoder_weight"].T)
        gru.weight_ih.copy_(torch.cat([given["decoder_w"], given["feedback"]]).T)
        gru.bias_ih.copy_(given["decoder_wb"])
        gru.weight_hh.copy_(given["decoder_r"].T)
        gru.bias_hh.copy_(given["decoder_rb"])
    else:
        fed_back = [given["feedback"]] if "feedback" in given else []
        decoder.weight.copy_(torch.cat([given["decoder_weight"], *fed_back]).T)


def _constants(graph: onnx.GraphProto) -> dict[str, torch.Tensor]:
    return {
        value.name: torch.from_numpy(np.array(numpy_helper.to_array(value))) for value in graph.initializer
    }


def _misfit(where: Path, faults: list[str]) -> DataSetError:
    return DataSetError(
        f"a network starts from one of its own method and size, but {len(faults)} parameters of {where} do "
        f"not fit, the first is {faults[0]}"
    )
