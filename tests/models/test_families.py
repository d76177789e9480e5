"""The rows of the family table: first values, rules and norms, and what all of them share."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from manystream.layers import LinearIntegration, ScalarIntegration
from manystream.models import FAMILIES, StreamResNet
from manystream.models.families import family as look_up
from tests.builders import (
    CHANNELS,
    INTEGRATED_FAMILIES,
    WIDTHS,
    mask_of,
    presences,
    random_images,
    small_resnet,
    with_absent,
)

SIZE = (37, 43)

each_block = pytest.mark.parametrize("block", ["basic", "bottleneck"])


def new_network(family: str, streams: int = 2, block: str = "basic") -> StreamResNet:
    torch.manual_seed(0)
    return StreamResNet(
        family=family,
        block=block,
        layers=(1, 1, 1, 1),
        widths=(16, 32, 64, 128),
        in_channels=CHANNELS[:streams],
        num_classes=5,
    )


def rules_of(network: StreamResNet) -> list[nn.Module]:
    rules = (LinearIntegration, ScalarIntegration)
    return [module for module in network.modules() if isinstance(module, rules)]


def assert_kaiming(weight: Tensor, gain: float = 1.0) -> None:
    """Uniform within sqrt(2 / (1 + a²)) · sqrt(3 / fan_in), a² = 5, which is 1 / sqrt(fan_in)."""
    bound = gain / math.sqrt(weight[0].numel())
    assert weight.abs().max() <= bound
    if weight.numel() > 1000:
        assert weight.abs().max() > 0.98 * bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@each_block
@pytest.mark.parametrize("family", FAMILIES)
def test_first_values_of_kernels_and_norms(family: str, block: str) -> None:
    network = new_network(family, 1, block)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            assert_kaiming(module.weight)
            assert module.bias is None, name
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            assert module.eps == 1e-5
            assert (module.weight == 1).all()
            assert not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert module.momentum == 0.1
            assert (module.running_var == 1).all()
            assert not module.running_mean.any()
            assert module.num_batches_tracked == 0


@each_block
@pytest.mark.parametrize("streams", [1, 2, 3])
def test_first_mixing_of_li_net3(streams: int, block: str) -> None:
    square = 0
    for rule in rules_of(new_network("li_net3", streams, block)):
        for weight in rule.stream_weights:
            assert torch.equal(weight, torch.full_like(weight, 1 / streams))
        kernel = rule.integrated_weight
        if kernel is not None and kernel.shape[0] == kernel.shape[1]:
            square += 1
            matrix = kernel.detach().flatten(1)
            torch.testing.assert_close(
                matrix @ matrix.t(), torch.eye(len(matrix)), rtol=0, atol=1e-5
            )
        elif kernel is not None:
            assert_kaiming(kernel, gain=0.1)
    assert square >= 4


@each_block
@pytest.mark.parametrize("streams", [1, 2, 3])
def test_first_mixing_of_li_net3_soma(streams: int, block: str) -> None:
    for rule in rules_of(new_network("li_net3_soma", streams, block)):
        assert len(rule.stream_weights) == streams
        for weight in rule.stream_weights:
            assert_kaiming(weight)
        if rule.integrated_weight is not None:
            assert_kaiming(rule.integrated_weight)


@each_block
@pytest.mark.parametrize("streams", [1, 2, 3])
def test_first_mixing_of_direct_mixing_conv(streams: int, block: str) -> None:
    first, *rules = rules_of(new_network("direct_mixing_conv", streams, block))
    assert first.integrated_weight is first.integrated_scalar is None
    for rule in (first, *rules):
        assert [scalar.tolist() for scalar in rule.stream_scalars] == [[1.0]] * streams
    for rule in rules:
        assert rule.integrated_scalar.shape == ()
        assert rule.integrated_scalar.item() == pytest.approx(0.2)
        assert_kaiming(rule.integrated_weight)


@each_block
@pytest.mark.parametrize(
    ("family", "rule", "norm"),
    [
        ("li_net3", LinearIntegration, nn.BatchNorm2d),
        ("li_net3_soma", LinearIntegration, nn.GroupNorm),
        ("direct_mixing_conv", ScalarIntegration, nn.GroupNorm),
        ("early_fusion", None, None),
        ("late_fusion", None, None),
        ("single_stream", None, None),
    ],
)
def test_rules_and_norms(
    family: str, block: str, rule: type[nn.Module] | None, norm: type[nn.Module] | None
) -> None:
    network = new_network(family, 1 if family == "single_stream" else 2, block)
    modules = dict(network.named_modules())
    assert {type(m) for n, m in modules.items() if n.endswith(".integration")} == {rule} - {None}
    norms = [m for n, m in modules.items() if n.endswith(".integrated")]
    assert {type(m) for m in norms} == {norm} - {None}
    assert all(m.num_groups == 1 for m in norms if isinstance(m, nn.GroupNorm))
    streams = [m for n, m in modules.items() if ".streams." in n and "bn" in n]
    assert {type(m) for m in streams} == {nn.BatchNorm2d}


def test_the_families() -> None:
    assert set(FAMILIES) == {*INTEGRATED_FAMILIES, "early_fusion", "late_fusion", "single_stream"}
    with pytest.raises(ValueError, match="unknown family 'li_net4'; expected one of li_net3, li"):
        look_up("li_net4")


def assert_no_trace_of_absent(family: str, words: str, training: bool) -> None:
    mask = mask_of(words)
    results = []
    for value in (math.nan, 0.0):
        network = small_resnet(mask.shape[1], family=family).train(training)
        images = with_absent(random_images(mask, size=SIZE), mask, value)
        images = [x.requires_grad_() for x in images]
        logits = network(images, present=mask)
        logits.square().sum().backward()
        left = {f"input {m}": x.grad for m, x in enumerate(images)}
        left |= {n: p.grad for n, p in network.named_parameters() if p.requires_grad}
        results.append({"logits": logits, **left, **dict(network.named_buffers())})
    for name, tensor in results[0].items():
        assert tensor is not None, name
        assert tensor.isfinite().all(), name
        assert torch.equal(tensor, results[1][name]), name
    for m in range(mask.shape[1]):
        assert not results[0][f"input {m}"][~mask[:, m]].any()


@settings(max_examples=20)
@given(
    words=presences(min_streams=2, max_streams=3),
    family=st.sampled_from([f for f in FAMILIES if f != "single_stream"]),
    training=st.booleans(),
)
@example("10 10 10", "late_fusion", True)
@example("01 11", "early_fusion", True)
@example("110 101 011 001", "direct_mixing_conv", True)
@example("01 11 10 11", "li_net3_soma", True)
def test_nan_in_absent_images_never_leaks(words: str, family: str, training: bool) -> None:
    assert_no_trace_of_absent(family, words, training)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "single_stream"])
def test_present_is_written_in_many_ways(family: str) -> None:
    network = small_resnet(2, family=family).eval()
    mask = mask_of("11 10 01")
    images = random_images(mask, size=SIZE)
    expected = network(images, present=mask)
    assert torch.equal(network(images, blanked_mask={m: ~mask[:, m] for m in (0, 1)}), expected)
    everything = network(images)
    assert torch.equal(network(images, present=torch.ones_like(mask)), everything)
    assert not torch.allclose(everything, expected)
    alone = network([images[0], None])
    assert torch.equal(network(images, present=mask_of("10 10 10")), alone)
    with pytest.raises(ValueError, match="samples without any stream: 1"):
        network(images, present=mask_of("11 00 11"))


@each_block
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_features(family: str, block: str) -> None:
    streams = 1 if family == "single_stream" else 2
    mask = mask_of("1 1 1" if streams == 1 else "01 11 10")
    network = small_resnet(streams, block, family=family).eval()
    images = random_images(mask, size=SIZE)
    features = network.forward_features(images, present=mask)
    pathways = streams if family == "late_fusion" else 1
    expansion = 1 if block == "basic" else 4
    sides = [(10, 11), (5, 6), (3, 3), (2, 2)]
    due = [(3, pathways * expansion * w, *side) for w, side in zip(WIDTHS, sides, strict=True)]
    assert [tuple(x.shape) for x in features] == due
    logits = network.fc(features[-1].mean(dim=(2, 3)))
    torch.testing.assert_close(logits, network(images, present=mask), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_dtype_stays(family: str) -> None:
    streams = 1 if family == "single_stream" else 2
    mask = mask_of("1 1" if streams == 1 else "11 10")
    for dtype in (torch.float32, torch.float64):
        network = small_resnet(streams, family=family, dtype=dtype)
        images = random_images(mask, size=SIZE, dtype=dtype)
        assert network(images, present=mask).dtype == dtype
