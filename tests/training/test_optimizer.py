from functools import partial

import pytest
import torch
from torch import nn

from manystream import StreamModel
from manystream.layers import StreamConv2d, StreamNormAct2d
from manystream.models import FilledNetwork
from manystream.training.optimizer import build_optimizer
from manystream.training.options import FitOptions
from manystream.training.param_groups import make_param_groups
from tests.training.builders import tiny_model


def optimizer_of(model, fused=False, **changes):
    options = FitOptions(**changes)
    groups = make_param_groups(model.network, options)
    arguments = options.learning_rate, options.optimizer_arguments
    return build_optimizer(options.optimizer, groups, *arguments, fused=fused)


def settings_of(optimizer, name):
    """A setting of the groups, by parameter."""
    return {id(p): group[name] for group in optimizer.param_groups for p in group["params"]}


def test_every_trained_parameter_is_in_exactly_one_group():
    model = tiny_model()
    model.network.fc.weight.requires_grad_(False)
    optimizer = optimizer_of(model, learning_rate_multipliers={"rgb": 2.0, "stem": 3.0})
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(set(grouped)) == len(grouped)
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("family", ["li_net3", "direct_mixing_conv"])
def test_norms_biases_and_scalars_do_not_decay(family):
    model = tiny_model(family=family)
    decay = settings_of(optimizer_of(model, weight_decay=0.3), "weight_decay")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    of_norms = [p for norm in norms for p in norm.parameters() if p.requires_grad]
    scalars = [p for name, p in model.network.named_parameters() if "scalar" in name]
    assert len(of_norms) > 50
    assert len(scalars) == (0 if family == "li_net3" else 35)
    assert {decay[id(p)] for p in [*of_norms, *scalars, model.network.fc.bias]} == {0.0}
    kernels = [p for name, p in model.network.named_parameters() if "conv" in name and p.dim() == 4]
    assert {decay[id(p)] for p in [*kernels, model.network.fc.weight]} == {0.3}


def test_groups_have_learning_rates_of_their_own():
    model = tiny_model()
    multipliers = {"rgb": 2.0, "depth": 3.0, "shared": 5.0, "stem": 7.0}
    optimizer = optimizer_of(model, learning_rate=0.1, learning_rate_multipliers=multipliers)
    found = settings_of(optimizer, "lr")
    expected = {id(p): 5.0 for p in model.parameters()}
    for module in model.modules():
        if isinstance(module, StreamConv2d | StreamNormAct2d):
            for stream, multiplier in zip(module.streams, (2.0, 3.0), strict=True):
                expected |= {id(p): multiplier for p in stream.parameters()}
    for layer in (model.network.conv1, model.network.bn1):
        expected |= {id(p): 7 * expected[id(p)] for p in layer.parameters()}
    assert found == pytest.approx({i: 0.1 * expected[i] for i in found})
    assert set(expected.values()) == {2, 3, 5, 14, 21, 35}


def test_a_network_whose_images_are_filled_in_has_the_same_groups():
    model = tiny_model()
    fill = {name: torch.zeros(c, 1, 1) for name, c in model.network.in_channels.items()}
    filled = StreamModel(FilledNetwork(model.network, fill), model.task)
    multipliers = {"rgb": 2.0, "depth": 3.0, "shared": 5.0, "stem": 7.0}
    expected, found = (
        settings_of(optimizer_of(one, learning_rate_multipliers=multipliers), "lr")
        for one in (model, filled)
    )
    assert found == expected


def test_sgd_has_nesterov_momentum_unless_told_otherwise():
    group = optimizer_of(tiny_model(), optimizer="sgd").param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.9, True)
    plain = {"momentum": 0.0, "nesterov": False}
    optimizer = optimizer_of(tiny_model(), optimizer="sgd", optimizer_arguments=plain)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["momentum"] == 0.0


def test_another_optimizer_by_its_path():
    optimizer = optimizer_of(
        tiny_model(), optimizer="torch.optim.RAdam", optimizer_arguments={"betas": [0.8, 0.9]}
    )
    assert isinstance(optimizer, torch.optim.RAdam)
    assert optimizer.param_groups[0]["betas"] == [0.8, 0.9]


def test_the_users_own():
    own = partial(torch.optim.RMSprop, alpha=0.5)
    optimizer = optimizer_of(tiny_model(), optimizer=own, learning_rate=0.2)
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert {(g["alpha"], g["lr"]) for g in optimizer.param_groups} == {(0.5, 0.2)}


def test_only_known_optimizers_are_fused():
    for name, fused in (("adamw", True), ("sgd", True), ("torch.optim.RAdam", None)):
        optimizer = optimizer_of(tiny_model(), fused=True, optimizer=name)
        assert optimizer.param_groups[0].get("fused") is fused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizer": "adam"},
            "unknown optimizer 'adam'; expected one of adamw, sgd, or the path",
        ),
        ({"optimizer": "torch.optim.Adamw"}, "unknown optimizer 'torch.optim.Adamw'"),
        ({"optimizer": "no.such.Thing"}, "unknown optimizer"),
        ({"optimizer_arguments": {"momentum": 0.9}}, "does not take optimizer_arguments"),
        ({"optimizer_arguments": {"betas": [2, 0.9]}}, "does not take optimizer_arguments"),
        ({"learning_rate_multipliers": {"rgb": 0.0}}, "has rgb: 0.0; expected more than 0"),
    ],
)
def test_what_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        FitOptions(**changes)


def test_a_multiplier_of_what_is_not_there():
    with pytest.raises(
        ValueError, match="'lidar'; the network's parameter groups are rgb, depth, shared, ste"
    ):
        optimizer_of(tiny_model(), learning_rate_multipliers={"lidar": 2.0})
    with pytest.raises(ValueError, match="'rgb'; the network's parameter groups are shared, stem"):
        optimizer_of(tiny_model(family="early_fusion"), learning_rate_multipliers={"rgb": 2.0})
