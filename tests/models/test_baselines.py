"""The networks that users compare with, against plain ResNets."""

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F

from manystream import create_model
from manystream.models import StreamResNet
from tests.builders import CHANNELS, WIDTHS, mask_of, random_images, small_resnet, with_absent
from tests.models.plain_resnet import PlainResNet

SIZE = (37, 43)

each_block = pytest.mark.parametrize("block", ["basic", "bottleneck"])
each_mode = pytest.mark.parametrize("training", [True, False])
each_presence = pytest.mark.parametrize(
    "words", ["11 11 11", "11 10 01 11", "10 10 10", "01 01", "110 101 011 010", "1 1 1"]
)


@pytest.mark.parametrize("streams", [{"rgb": 3, "depth": 1}, [3, 1, 1]])
def test_a_single_stream_network_refuses_more(streams: Sequence[int]) -> None:
    with pytest.raises(ValueError, match="family 'single_stream' has one stream; these are"):
        create_model("single_stream", streams=streams, num_classes=5)
    assert create_model("single_stream", streams={"rgb": 3}, num_classes=5, width=1 / 16)


def plain_copy(network: StreamResNet, block: str, number: int, channels: int) -> PlainResNet:
    """A plain ResNet with the weights of one of a network's streams, and a head of its own."""
    plain = PlainResNet(block, (1, 1, 1, 1), WIDTHS, channels, 5).double()
    plain.load_state_dict(
        {
            key.replace(f".streams.{number}.", "."): tensor
            for key, tensor in network.state_dict().items()
            if f".streams.{number}." in key
        }
        | {f"fc.{key}": tensor for key, tensor in plain.fc.state_dict().items()}
    )
    return plain.train(network.training)


def assert_statistics(network: StreamResNet, plain: PlainResNet, number: int) -> None:
    after = network.state_dict()
    for key, buffer in plain.named_buffers():
        module, tensor = key.rsplit(".", 1)
        ours = after[f"{module}.streams.{number}.{tensor}"]
        torch.testing.assert_close(ours, buffer, rtol=1e-10, atol=1e-12, msg=key)


@each_presence
@each_mode
@each_block
def test_early_fusion_is_a_resnet_of_joined_images(block: str, training: bool, words: str) -> None:
    """Absent images are zero there."""
    mask = mask_of(words)
    network = small_resnet(mask.shape[1], block, family="early_fusion").train(training)
    plain = plain_copy(network, block, 0, sum(CHANNELS[: mask.shape[1]]))
    plain.fc.load_state_dict(network.fc.state_dict())
    images = random_images(mask, size=SIZE)
    logits = network(with_absent(images, mask, math.nan), present=mask)
    expected = plain(torch.cat(with_absent(images, mask, 0.0), dim=1))
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    assert_statistics(network, plain, 0)


@each_presence
@each_mode
@each_block
def test_late_fusion_joins_the_features_of_resnets(block: str, training: bool, words: str) -> None:
    """Of each sample's own streams; absent features are zero."""
    mask = mask_of(words)
    network = small_resnet(mask.shape[1], block, family="late_fusion").train(training)
    images = random_images(mask, size=SIZE)
    plains, features = [], []
    for m, x in enumerate(images):
        plain = plain_copy(network, block, m, CHANNELS[m])
        width = plain.fc.in_features
        placed = torch.zeros(len(mask), width, dtype=torch.float64)
        if mask[:, m].any():
            placed[mask[:, m]] = plain.features(x[mask[:, m]])
        plains.append(plain)
        features.append(placed)
    logits = network(with_absent(images, mask, math.nan), present=mask)
    expected = F.linear(torch.cat(features, dim=1), network.fc.weight, network.fc.bias)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    for m, plain in enumerate(plains):
        assert_statistics(network, plain, m)


@pytest.mark.parametrize("words", ["10 10 10", "01 01"])
def test_a_stream_that_no_sample_has_gets_zero_gradients_in_late_fusion(words: str) -> None:
    network = small_resnet(family="late_fusion")
    mask = mask_of(words)
    target = torch.arange(len(mask))
    F.cross_entropy(network(random_images(mask, size=SIZE), mask), target).backward()
    absent = [m for m in range(2) if not mask[:, m].any()]
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        if f".streams.{absent[0]}." in name:
            assert not parameter.grad.any(), name
