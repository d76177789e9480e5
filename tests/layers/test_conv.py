import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manystream.batch import StreamBatch
from manystream.layers import LinearIntegration, RawConv2d, StreamConv2d
from tests.builders import compact_batch, mask_of, randomise

WORDS = ["11 11", "11 01 10", "10 10", "01 11 10 11"]


def build(
    kernel_size: int = 3,
    stride: int | tuple[int, int] = 1,
    *,
    bias: bool = False,
    first: bool = False,
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


def by_hand(
    layer: StreamConv2d, batch: StreamBatch, stride: int | tuple[int, int]
) -> tuple[list[Tensor], Tensor]:
    """The equations, sample by sample."""
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
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (3, 2), (1, 2), (7, 2), (3, (2, 1))])
def test_the_equation(
    words: str, bias: bool, first: bool, kernel_size: int, stride: int | tuple[int, int]
) -> None:
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


OPTIONS = [
    {"dilation": 2},
    {"dilation": (1, 2), "padding": (1, 2)},
    {"padding_mode": "reflect", "padding": 1},
    {"padding_mode": "circular", "padding": (0, 1)},
    {"padding": "same"},
    {"padding": "valid"},
    {"padding": (0, 2)},
    {"stride": (2, 1)},
    {"kernel_size": (3, 1)},
    {"groups": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_a_raw_convolution_takes_every_option(options: dict[str, object], bias: bool) -> None:
    ours = RawConv2d(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, **options})
    stock = nn.Conv2d(4, 6, **{"kernel_size": 3, **options}, bias=False)
    stock.load_state_dict({"weight": ours.weight})
    x = torch.randn(2, 4, 7, 9)
    assert torch.equal(ours(x), stock(x))


@pytest.mark.parametrize("words", WORDS)
def test_a_dilated_convolution_in_a_layer(words: str) -> None:
    layer, batch = build(bias=True), compact_batch(mask_of(words), integrated_channels=2)
    for conv in layer.streams:
        conv.dilation = conv.padding = (2, 2)
    out, raw = layer(batch), []
    for conv, x, y in zip(layer.streams, batch.streams, out.streams, strict=True):
        raw.append(F.conv2d(x, conv.weight, None, 1, 2, 2))
        torch.testing.assert_close(y, raw[-1] + conv.bias.view(-1, 1, 1))
    torch.testing.assert_close(
        out.integrated, layer.integration(raw, batch.views, batch.integrated)[0]
    )


def test_a_layer_that_would_drop_the_integrated_pathway_is_refused() -> None:
    batch = compact_batch(mask_of("11 01 10"), integrated_channels=2)
    with pytest.raises(ValueError, match="would drop; build it with integrated_channels=2"):
        build(first=True)(batch)
    alone = StreamConv2d([3, 1], 5, 3, integration=None).double()
    with pytest.raises(ValueError, match="without integration would drop"):
        alone(batch)
    with pytest.raises(ValueError, match="no integrated pathway, which this layer is built for"):
        build()(replace(batch, integrated=None))


def test_streams_that_end_smaller_than_the_integrated_pathway_are_refused() -> None:
    layer = StreamConv2d([3, 1], 5, 3, integrated_channels=2).double()
    batch = compact_batch(mask_of("11 01 10"), integrated_channels=2)
    with pytest.raises(
        ValueError, match=r"gives 3 views of \(5, 7\); expected 3 of \(3, 5\) .* pad"
    ):
        layer(batch)


def test_streams_that_end_in_different_sizes_are_refused() -> None:
    layer, batch = build(), compact_batch(mask_of("11 01 10"), integrated_channels=2)
    turned = (batch.streams[0], batch.streams[1].mT)
    with pytest.raises(
        ValueError, match=r"raw\[1\] has shape .*7, 5\) .*; expected 2 rows .*5, 7\)"
    ):
        layer(replace(batch, streams=turned))


def test_a_convolution_put_in_a_streams_place() -> None:
    layer, batch = build(), compact_batch(mask_of("11 01 10"), integrated_channels=2)
    expected = layer(batch)
    for other in (nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.Sequential(layer.streams[0])):
        if isinstance(other, nn.Conv2d):
            other.weight = layer.streams[0].weight
        layer.streams[0] = other
        out = layer(batch)
        torch.testing.assert_close(out.streams, expected.streams)
        torch.testing.assert_close(out.integrated, expected.integrated)
    layer.streams[0] = nn.Conv2d(3, 5, 3, padding=1).double()
    with pytest.raises(ValueError, match=r"is Conv2d with a bias, .* use RawConv2d, or bias=False"):
        layer(batch)


def test_images_of_another_dtype_than_the_weights_are_refused() -> None:
    layer, batch = build(), compact_batch(mask_of("11 01 10"), integrated_channels=2)
    message = r"images are torch.float64 and the network's weights torch.float32; .*x.to\(torch.fl"
    with pytest.raises(ValueError, match=message):
        layer.float()(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match=message):
        layer(batch)
    half = batch.map(lambda x: x.to(torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(half).integrated.dtype == torch.bfloat16
