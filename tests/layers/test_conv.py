import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from manystream.batch import StreamBatch
from manystream.layers import LinearIntegration, StreamConv2d
from tests.builders import compact_batch, mask_of, randomise

WORDS = ["11 11", "11 01 10", "10 10", "01 11 10 11"]


def build(
    kernel_size: int = 3, stride: int = 1, *, bias: bool = False, first: bool = False
) -> StreamConv2d:
    """Three channels and one to five; the integrated input has two."""
    torch.manual_seed(0)
    layer = StreamConv2d(
        [3, 1],
        5,
        kernel_size,
        stride,
        kernel_size // 2,
        integrated_channels=None if first else 2,
        bias=bias,
    ).double()
    randomise(layer)
    if bias:
        torch.nn.init.normal_(layer.integration.bias)
    return layer


def by_hand(layer: StreamConv2d, batch: StreamBatch, stride: int) -> tuple[list[Tensor], Tensor]:
    """DESIGN section 2, sample by sample."""
    streams, mixed = [], {}
    for m, x in enumerate(batch.streams):
        weight, bias = layer.streams[m].weight, layer.streams[m].bias
        raw = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2)
        streams.append(raw if bias is None else raw + bias.view(1, -1, 1, 1))
        for row, sample in zip(raw, batch.presence.samples(m).tolist(), strict=True):
            mixed[m, sample] = F.conv2d(row[None], layer.integration.stream_weights[m])[0]
    order = batch.presence.order
    samples = range(len(batch)) if order is None else order.tolist()
    integrated = [sum(y for (_, at), y in mixed.items() if at == b) for b in samples]
    total = torch.stack(integrated)
    if batch.integrated is not None:
        total = total + F.conv2d(
            batch.integrated, layer.integration.integrated_weight, None, stride
        )
    if layer.integration.bias is not None:
        total = total + layer.integration.bias.view(1, -1, 1, 1)
    return streams, total


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("first", [False, True], ids=["later layer", "first layer"])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (3, 2), (1, 2), (7, 2)])
def test_the_equation(words: str, bias: bool, first: bool, kernel_size: int, stride: int) -> None:
    layer = build(kernel_size, stride, bias=bias, first=first)
    batch = compact_batch(mask_of(words), integrated_channels=None if first else 2)
    out = layer(batch)
    streams, integrated = by_hand(layer, batch, stride)
    for y, due in zip(out.streams, streams, strict=True):
        torch.testing.assert_close(y, due)
    torch.testing.assert_close(out.integrated, integrated)
    assert out.presence is batch.presence


def test_what_is_mixed_is_raw_not_biased() -> None:
    layer = build(bias=True)
    batch = compact_batch(mask_of("11 01"), integrated_channels=2)
    before = layer(batch)
    for conv in layer.streams:
        torch.nn.init.constant_(conv.bias, 100.0)
    after = layer(batch)
    assert torch.equal(after.integrated, before.integrated)
    for conv, y, old in zip(layer.streams, after.streams, before.streams, strict=True):
        assert y.min() > old.min() + 90
        assert conv.bias is not None


@pytest.mark.parametrize("words", WORDS)
def test_biases_have_gradients(words: str) -> None:
    layer = build(bias=True)
    out = layer(compact_batch(mask_of(words), integrated_channels=2))
    (sum(y.sum() for y in out.streams) + out.integrated.sum()).backward()
    pixels = out.integrated[0, 0].numel()
    for conv, y in zip(layer.streams, out.streams, strict=True):
        due = torch.full((5,), float(len(y) * pixels), dtype=torch.float64)
        torch.testing.assert_close(conv.bias.grad, due)
    due = torch.full((5,), float(len(out) * pixels), dtype=torch.float64)
    torch.testing.assert_close(layer.integration.bias.grad, due)


def test_without_bias_there_is_none() -> None:
    layer = build()
    assert layer.integration.bias is None
    assert not [n for n, _ in layer.named_parameters() if "bias" in n]


def test_the_batch_is_left_as_it_was() -> None:
    layer = build(bias=True)
    batch = compact_batch(mask_of("11 01 10"), integrated_channels=2)
    copies = [x.clone() for x in (*batch.streams, batch.integrated)]
    layer(batch)
    for x, copy in zip((*batch.streams, batch.integrated), copies, strict=True):
        assert torch.equal(x, copy)


def test_autocast_gives_what_a_convolution_gives() -> None:
    layer = build(bias=True).float()
    batch = compact_batch(mask_of("11 01"), integrated_channels=2, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(batch)
        ordinary = F.conv2d(batch.streams[0], layer.streams[0].weight, layer.streams[0].bias)
    assert ordinary.dtype == torch.bfloat16
    assert [x.dtype for x in (*out.streams, out.integrated)] == [torch.bfloat16] * 3


def test_stream_kernels_begin_kaiming_uniform() -> None:
    torch.manual_seed(0)
    layer = StreamConv2d([3, 16], 64, 7)
    for conv, channels in zip(layer.streams, (3, 16), strict=True):
        # Gain sqrt(2 / (1 + a²)) with a² = 5, times sqrt(3 / fan_in).
        bound = math.sqrt(2 / 6) * math.sqrt(3 / (channels * 49))
        assert 0.99 * bound < conv.weight.abs().max() <= bound
        assert conv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
        assert abs(conv.weight.mean()) < 0.03 * bound


def test_the_rule_is_an_argument() -> None:
    asked = []

    def rule(*arguments: object) -> LinearIntegration:
        asked.append(arguments)
        return LinearIntegration(*arguments)

    layer = StreamConv2d([3, 1], 5, 3, 2, 1, integrated_channels=2, integration=rule, bias=True)
    assert asked == [(2, 2, 5, 2, True)]
    assert isinstance(layer.integration, LinearIntegration)
