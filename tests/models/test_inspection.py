import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manystream.batch import make_batch
from manystream.models import StreamResNet, contributions, mixing_weights
from tests.builders import INTEGRATED_FAMILIES, mask_of, random_images, small_resnet, with_absent

SIZE = (37, 43)

CONVOLUTIONS = [
    *("conv1", "layer1.0.conv1", "layer1.0.conv2"),
    *("layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0"),
    *("layer3.0.conv1", "layer3.0.conv2", "layer3.0.downsample.0"),
    *("layer4.0.conv1", "layer4.0.conv2", "layer4.0.downsample.0"),
]
"""Of a network of basic blocks, of which the first has no shortcut."""

each_family = pytest.mark.parametrize("family", INTEGRATED_FAMILIES)


def mixed_by_hand(network: StreamResNet, layer: str, m: int, raw: Tensor) -> Tensor:
    rule = network.get_submodule(layer).integration
    if hasattr(rule, "stream_scalars"):
        return raw * rule.stream_scalars[m]
    matrix = rule.stream_weights[m][:, :, 0, 0]
    return torch.einsum("dc,bchw->bdhw", matrix, raw)


def rms(x: Tensor) -> float:
    return (x.detach().double() ** 2).mean().item() ** 0.5


@each_family
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("words", ["11 11 11", "01 11 10 11", "110 101 011 010", "1 1"])
def test_contributions_by_hand(family: str, training: bool, words: str) -> None:
    """Of the first layer, and of the second after norm, ReLU and pooling, in evaluation mode."""
    mask = mask_of(words)
    network = small_resnet(mask.shape[1], family=family).train(training)
    images = random_images(mask, size=SIZE)
    measured = contributions(network, with_absent(images, mask, math.nan), present=mask)
    for m, name in enumerate(network.stream_names):
        raw = F.conv2d(images[m][mask[:, m]], network.conv1.streams[m].weight, None, 2, 3)
        first = rms(mixed_by_hand(network, "conv1", m, raw))
        assert measured["conv1"][name] == pytest.approx(first, rel=1e-6)
        norm = network.bn1.streams[m]
        x = F.batch_norm(raw, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        x = F.max_pool2d(F.relu(x), 3, 2, 1)
        raw = F.conv2d(x, network.layer1[0].conv1.streams[m].weight, None, 1, 1)
        second = rms(mixed_by_hand(network, "layer1.0.conv1", m, raw))
        assert measured["layer1.0.conv1"][name] == pytest.approx(second, rel=1e-6)


@each_family
def test_every_layer_by_name_in_order(family: str) -> None:
    network = small_resnet(2, family=family)
    measured = contributions(network, random_images(mask_of("11 11"), size=SIZE))
    weights = mixing_weights(network)
    assert list(measured) == list(weights) == CONVOLUTIONS
    assert all(list(by_stream) == ["0", "1"] for by_stream in measured.values())
    for layer, by_stream in weights.items():
        assert list(by_stream) == (["0", "1"] if layer == "conv1" else ["0", "1", "integrated"])
    numbers = [x for by in (*measured.values(), *weights.values()) for x in by.values()]
    assert all(type(x) is float and math.isfinite(x) for x in numbers)


def test_a_bottlenecks_layers() -> None:
    network = small_resnet(2, "bottleneck")
    measured = contributions(network, random_images(mask_of("11"), size=SIZE))
    first = ["conv1", "conv2", "conv3", "downsample.0"]
    assert list(measured)[1:5] == [f"layer1.0.{name}" for name in first]
    assert len(measured) == 1 + 4 * 4


def test_streams_are_called_by_their_names() -> None:
    network = StreamResNet(
        layers=(1, 1, 1, 1), widths=(4, 4, 4, 4), in_channels={"rgb": 3, "ir": 1}, num_classes=5
    )
    images = random_images(mask_of("11"), size=SIZE, dtype=torch.float32)
    measured = contributions(network, {"rgb": images[0], "ir": images[1]})
    assert list(measured["conv1"]) == ["rgb", "ir"]
    assert list(mixing_weights(network)["layer1.0.conv1"]) == ["rgb", "ir", "integrated"]


@each_family
@pytest.mark.parametrize("stream", [0, 1])
def test_a_stream_without_rows_gives_nan(family: str, stream: int) -> None:
    mask = mask_of("01 01" if stream == 0 else "10 10")
    network = small_resnet(2, family=family)
    measured = contributions(network, random_images(mask, size=SIZE), present=mask)
    for by_stream in measured.values():
        assert math.isnan(by_stream[str(stream)])
        assert math.isfinite(by_stream[str(1 - stream)])


def test_inputs_are_written_as_for_the_network() -> None:
    network = small_resnet(2)
    mask = mask_of("11 10 01")
    images = random_images(mask, size=SIZE)
    expected = contributions(network, images, present=mask)
    batch = make_batch(images, network.in_channels, present=mask)
    lost = {1: ~mask[:, 1], "0": ~mask[:, 0]}
    assert contributions(network, batch) == expected
    assert contributions(network, images, blanked_mask=lost) == expected
    assert contributions(network, images, mask) == expected


class Snapshot:
    """All of a network that looking inside must not change."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        self.modes = [module.training for module in network.modules()]
        self.hooks = self.count_hooks()
        self.attributes = [set(vars(module)) for module in network.modules()]

    def count_hooks(self) -> list[int]:
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return [len(getattr(m, kind)) for m in self.network.modules() for kind in kinds]

    def assert_unchanged(self) -> None:
        after = self.network.state_dict()
        assert all(torch.equal(tensor, after[key]) for key, tensor in self.state.items())
        assert [module.training for module in self.network.modules()] == self.modes
        assert self.count_hooks() == self.hooks
        assert [set(vars(module)) for module in self.network.modules()] == self.attributes
        assert all(p.grad is None for p in self.network.parameters())
        assert torch.is_grad_enabled()


def half_frozen(family: str) -> StreamResNet:
    """A network in training of which some modules are in evaluation mode."""
    network = small_resnet(2, family=family, dropout=0.5).train()
    for module in (network.bn1, network.layer2[0].bn1.streams[1], network.layer3):
        module.eval()
    network.layer3[0].conv1.train()
    return network


@each_family
def test_nothing_is_left_behind(family: str) -> None:
    network = half_frozen(family)
    before = Snapshot(network)
    assert not any(before.hooks)
    assert len(set(before.modes)) == 2
    images = random_images(mask_of("11 10"), size=SIZE)
    contributions(network, images, present=mask_of("11 10"))
    mixing_weights(network)
    before.assert_unchanged()


def test_other_hooks_stay() -> None:
    network, seen = half_frozen("li_net3"), []
    handle = network.conv1.integration.register_forward_hook(lambda *_: seen.append("mine"))
    before = Snapshot(network)
    assert sum(before.hooks) == 1
    contributions(network, random_images(mask_of("11 11"), size=SIZE))
    before.assert_unchanged()
    assert seen == ["mine"]
    handle.remove()


@pytest.mark.parametrize(
    "inputs", [[], random_images(mask_of("11 11"), channels=(3, 3), size=SIZE), [None, None]]
)
def test_nothing_is_left_behind_after_an_error(inputs: Any) -> None:
    network = half_frozen("li_net3")
    before = Snapshot(network)
    with pytest.raises(ValueError, match="stream"):
        contributions(network, inputs)
    before.assert_unchanged()


def test_nothing_is_left_behind_after_an_error_inside() -> None:
    network = half_frozen("li_net3")

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    network.layer3.register_forward_hook(fail)
    before = Snapshot(network)
    with pytest.raises(RuntimeError, match="out of memory"):
        contributions(network, random_images(mask_of("11 11"), size=SIZE))
    before.assert_unchanged()


@pytest.mark.parametrize("family", ["late_fusion", "early_fusion", "single_stream"])
@pytest.mark.parametrize(
    "look",
    [
        lambda network, images: contributions(network, images),
        lambda network, _: mixing_weights(network),
    ],
    ids=["contributions", "mixing_weights"],
)
def test_without_an_integrated_pathway(family: str, look: Callable[..., Any]) -> None:
    network = small_resnet(1, family=family).train()
    before = Snapshot(network)
    with pytest.raises(ValueError, match="no integrated pathway"):
        look(network, random_images(mask_of("1 1"), size=SIZE))
    before.assert_unchanged()


def largest_singular_value(kernel: Tensor) -> float:
    """By powers of K Kᵀ."""
    matrix = kernel.detach().double()[:, :, 0, 0]
    x = torch.ones(matrix.shape[0], dtype=torch.float64)
    for _ in range(2000):
        x = matrix @ (matrix.t() @ x)
        x = x / x.norm()
    return (matrix.t() @ x).norm().item()


@pytest.mark.parametrize("family", ["li_net3", "li_net3_soma"])
def test_linear_mixing_weights_are_spectral_norms(family: str) -> None:
    network = small_resnet(2, family=family)
    for layer, by_stream in mixing_weights(network).items():
        rule = network.get_submodule(layer).integration
        for m, weight in enumerate(rule.stream_weights):
            assert by_stream[str(m)] == pytest.approx(largest_singular_value(weight), rel=1e-5)
        if rule.integrated_weight is not None:
            due = largest_singular_value(rule.integrated_weight)
            assert by_stream["integrated"] == pytest.approx(due, rel=1e-5)


def test_scalar_mixing_weights_are_the_scalars() -> None:
    network = small_resnet(3, family="direct_mixing_conv")
    network.layer2[0].conv1.integration.integrated_scalar.data.fill_(-0.3)
    for layer, by_stream in mixing_weights(network).items():
        rule = network.get_submodule(layer).integration
        alphas = [scalar.item() for scalar in rule.stream_scalars]
        assert [by_stream[name] for name in ("0", "1", "2")] == alphas
        assert alphas[1] < 0  # signs stay
        if rule.integrated_scalar is not None:
            due = rule.integrated_scalar.item() * largest_singular_value(rule.integrated_weight)
            assert by_stream["integrated"] == pytest.approx(due, rel=1e-5)


def test_the_first_mixing_weights_are_known() -> None:
    """A kernel of 1/M everywhere lengthens by C/M; an orthogonal one not at all."""
    torch.manual_seed(0)
    network = StreamResNet(
        layers=(1, 1, 1, 1), widths=(4, 8, 8, 8), in_channels=[3, 1], num_classes=5
    )
    weights = mixing_weights(network)
    assert weights["conv1"] == pytest.approx({"0": 2.0, "1": 2.0})
    assert weights["layer3.0.conv2"] == pytest.approx({"0": 4.0, "1": 4.0, "integrated": 1.0})
