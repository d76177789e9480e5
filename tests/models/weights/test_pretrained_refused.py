"""What does not fit a stream: an error that names it, and nothing is changed."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from manystream import create_model
from manystream.models import load_pretrained_stream
from tests.models.plain_resnet import plain_resnet
from tests.models.weights.pretrained import (
    LAYERS,
    SMALL_WIDTHS,
    WIDTH,
    assert_only_changed,
    narrow_model,
    resnet18,
    snapshot,
)

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def renamed(old: str, new: str) -> Change:
    return lambda state: {key.replace(old, new): tensor for key, tensor in state.items()}


def with_tensor(key: str, *shape: int) -> Change:
    return lambda state: {**state, key: torch.zeros(shape)}


def without(key: str) -> Change:
    return lambda state: {k: tensor for k, tensor in state.items() if k != key}


def other(
    block: str = "basic",
    layers: tuple[int, ...] = LAYERS,
    widths: tuple[int, ...] = SMALL_WIDTHS,
) -> Change:
    return lambda _: plain_resnet(3, block=block, layers=layers, widths=widths).state_dict()


MISMATCHES = {
    "deeper": (other(layers=(3, 4, 6, 3)), "layer1.2.conv1.weight is not in a stream"),
    "shallower": (other(layers=(2, 2, 1, 2)), "no layer3.1.conv1.weight"),
    "bottlenecks": (other("bottleneck"), "layer1.0.conv3.weight is not in a stream"),
    "wider": (
        other(widths=(8, 16, 32, 64)),
        "conv1.weight is (8, 3, 7, 7), expected (4, 3, 7, 7)",
    ),
    "one wider stage": (
        other(widths=(4, 8, 16, 64)),
        "layer4.0.conv1.weight is (64, 16, 3, 3), expected (32, 16, 3, 3)",
    ),
    "no kernel": (without("layer4.1.conv2.weight"), "no layer4.1.conv2.weight"),
    "no first kernel": (without("conv1.weight"), "no conv1.weight"),
    "no statistics": (without("layer1.0.bn2.running_var"), "no layer1.0.bn2.running_var"),
    "a bias": (with_tensor("layer1.0.conv1.bias", 4), "layer1.0.conv1.bias is not in a stream"),
    "attention": (with_tensor("layer1.0.se.fc1.weight", 1), "layer1.0.se.fc1.weight is not in"),
    "other names": (renamed("layer", "stage"), "no layer1.0.conv1.weight"),
    "another kernel size": (
        with_tensor("conv1.weight", 4, 3, 3, 3),
        "conv1.weight is (4, 3, 3, 3), expected (4, 3, 7, 7)",
    ),
    "a kernel without dimensions": (with_tensor("conv1.weight"), "conv1.weight is ()"),
    "a kernel of one dimension": (with_tensor("conv1.weight", 4), "conv1.weight is (4,)"),
    "a kernel without channels": (with_tensor("conv1.weight", 4, 0, 7, 7), "conv1.weight is"),
    "a wrong counter": (
        with_tensor("bn1.num_batches_tracked", 2),
        "bn1.num_batches_tracked is (2,), expected ()",
    ),
}


@pytest.mark.parametrize(("change", "named"), MISMATCHES.values(), ids=MISMATCHES.keys())
@pytest.mark.parametrize("stream", ["rgb", "depth"])
def test_what_does_not_fit_changes_nothing(change: Change, named: str, stream: str) -> None:
    model, state = narrow_model(), change(resnet18())
    before = snapshot(model)
    if stream == "depth":  # whose first convolution is adapted before it is compared
        named = named.replace("(8, 3, 7, 7), expected (4, 3", "(8, 1, 7, 7), expected (4, 1")
        named = named.replace("(4, 3, 3, 3), expected (4, 3", "(4, 1, 3, 3), expected (4, 1")
    with pytest.raises(ValueError, match=re.escape(named)) as refused:
        load_pretrained_stream(model, stream, state)
    assert f"stream {stream!r}" in str(refused.value)
    assert "nothing was loaded" in str(refused.value)
    assert_only_changed(model, before)


def test_an_unknown_stream() -> None:
    model = narrow_model()
    before = snapshot(model)
    for name in ("thermal", "0", ""):
        with pytest.raises(ValueError, match=f"names stream '{name}'; this model's are rgb, depth"):
            load_pretrained_stream(model, name, resnet18())
    assert_only_changed(model, before)


@pytest.mark.parametrize("stream", ["rgb", "depth"])
def test_a_stream_that_early_fusion_has_joined(stream: str) -> None:
    model = narrow_model("early_fusion")
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"{stream}.* no pathway of its own in early fusion"):
        load_pretrained_stream(model, stream, resnet18())
    assert_only_changed(model, before)


@pytest.mark.parametrize(
    ("stream", "change", "message"),
    [
        ("rgb", without("bn1.bias"), "stream 'rgb': no bn1.bias"),
        ("thermal", dict, "names stream 'thermal'"),
    ],
)
def test_create_model_refuses(stream: str, change: Change, message: str) -> None:
    pretrained = {stream: change(resnet18())}
    with pytest.raises(ValueError, match=message):
        create_model(streams={"rgb": 3}, num_classes=5, width=WIDTH, pretrained=pretrained)
