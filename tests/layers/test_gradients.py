"""Gradients of layers in whatever network they stand, against differences and without a trace."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from manystream.layers import (
    BasicBlock,
    Bottleneck,
    IntegrationRule,
    LinearIntegration,
    ScalarIntegration,
    StreamConv2d,
    StreamNormAct2d,
)
from manystream.presence import Presence
from manystream.streams import StreamBatch
from tests.builders import mask_of, randomise
from tests.functional.test_integrate import AllocatedBytes

CHANNELS, SIZE = 4, (3, 2)
PRESENCE = Presence.from_mask(mask_of("11 10 01"))
LAYOUTS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}

rules = pytest.mark.parametrize("rule", [LinearIntegration, ScalarIntegration])
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
biases = pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
both_blocks = pytest.mark.parametrize("block", [BasicBlock, Bottleneck])

Network = Callable[[StreamBatch], Tensor]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def conv_of(rule: IntegrationRule, bias: bool = False, first: bool = False) -> StreamConv2d:
    torch.manual_seed(0)
    conv = StreamConv2d(
        [CHANNELS] * 2,
        CHANNELS,
        3,
        padding=1,
        integrated_channels=None if first else CHANNELS,
        integration=rule,
        bias=bias,
    ).double()
    randomise(conv)
    return conv


def norm_of(norm: Callable[[int], nn.Module] = nn.BatchNorm2d, **options: bool) -> StreamNormAct2d:
    layer = StreamNormAct2d(CHANNELS, 2, norm, **options).double()
    layer.streams = nn.ModuleList(norm(CHANNELS) for _ in range(2)).double()
    randomise(layer)
    return layer


def batch_of(scale: Tensor, layout: torch.memory_format = torch.channels_last) -> StreamBatch:
    """What a layer before gives: every pathway follows from one leaf of a number per channel."""
    maps = [
        (noise(n, CHANNELS, *SIZE, seed=seed) * scale.view(-1, 1, 1)).contiguous(
            memory_format=layout
        )
        for seed, n in enumerate((2, 2, 3))
    ]
    return StreamBatch((maps[0], maps[1]), PRESENCE, maps[2])


def total(*batches: StreamBatch) -> Tensor:
    """A loss that every pathway enters in a way of its own."""
    maps = [x for b in batches for x in (*b.streams, b.integrated) if x is not None]
    return sum((x * noise(*x.shape, seed=i)).sin().sum() for i, x in enumerate(maps))


def added(one: StreamBatch, other: StreamBatch) -> StreamBatch:
    """An ``add``, whose backward gives both the same tensor."""
    streams = tuple(x + y for x, y in zip(one.streams, other.streams, strict=True))
    return replace(one, streams=streams, integrated=one.integrated + other.integrated)


def check(network: Network, layout: torch.memory_format = torch.channels_last) -> None:
    scale = noise(CHANNELS, seed=9).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: network(batch_of(s, layout)), scale)


class Watch:
    """Keep what tensor hooks are given, and a copy of it as it was then."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def on(self, batch: StreamBatch) -> None:
        for x in (*batch.streams, batch.integrated):
            if x is not None and x.requires_grad:
                x.register_hook(lambda grad: self.seen.append((grad, grad.clone())))

    def assert_unchanged(self) -> None:
        assert self.seen
        assert all(torch.equal(grad, copy) for grad, copy in self.seen)


@rules
@layouts
@biases
def test_a_convolution_that_meets_a_sum(
    rule: IntegrationRule, layout: torch.memory_format, bias: bool
) -> None:
    conv = conv_of(rule, bias)
    check(lambda batch: total(added(batch, conv(batch))), layout)


@rules
@biases
def test_only_some_of_what_a_convolution_gives_is_read(rule: IntegrationRule, bias: bool) -> None:
    conv = conv_of(rule, bias)
    check(lambda batch: (batch.streams[0] + conv(batch).streams[0]).square().sum())
    check(lambda batch: (batch.integrated + conv(batch).integrated).square().sum())


@rules
@layouts
def test_a_norm_behind_a_sum(rule: IntegrationRule, layout: torch.memory_format) -> None:
    conv, norm = conv_of(rule), norm_of(activation=False)
    check(lambda batch: total(norm(added(batch, conv(batch))), batch), layout)


@rules
@layouts
@pytest.mark.parametrize("activation", [False, True])
def test_norms_that_pass_their_gradient_on(
    rule: IntegrationRule, layout: torch.memory_format, activation: bool
) -> None:
    conv, norm = conv_of(rule), norm_of(nn.Identity, activation=activation)
    check(lambda batch: total(norm(conv(batch), batch)), layout)
    check(lambda batch: total(norm(conv(batch))), layout)


@rules
@layouts
@biases
def test_a_block_that_begins_with_norms(
    rule: IntegrationRule, layout: torch.memory_format, bias: bool
) -> None:
    first, second = (conv_of(rule, bias), norm_of()), (conv_of(rule, bias), norm_of())

    def network(batch: StreamBatch) -> Tensor:
        out = batch
        for conv, norm in (first, second):
            out = conv(norm(out))
        return total(added(batch, out))

    check(network, layout)


def block_of(block: type[BasicBlock] | type[Bottleneck], rule: IntegrationRule) -> nn.Module:
    torch.manual_seed(0)
    layer = block(2, CHANNELS, 2 * CHANNELS // block.expansion, integration=rule).double()
    randomise(layer)
    return layer


@both_blocks
@rules
def test_blocks(block: type[BasicBlock] | type[Bottleneck], rule: IntegrationRule) -> None:
    layer = block_of(block, rule)
    assert layer.downsample is not None
    check(lambda batch: total(layer(batch)))


@both_blocks
@rules
@pytest.mark.parametrize("name", ["conv1", "downsample.0"])
def test_a_block_whose_raw_outputs_are_read_by_others(
    block: type[BasicBlock] | type[Bottleneck], rule: IntegrationRule, name: str
) -> None:
    """Features taken by a hook meet a sum, and the norm behind them is not read at all."""
    layer = block_of(block, rule)
    taken: list[StreamBatch] = []
    watched = layer.get_submodule(name)
    watched.register_forward_hook(lambda *given: taken.append(given[-1]))
    channels = watched.streams[0].out_channels

    def network(batch: StreamBatch) -> Tensor:
        other = torch.cat([batch.streams[0]] * 2, dim=1)[:, :channels]
        out = layer(batch)
        raw = taken.pop()
        met = (other + raw.streams[0]).square().sum()
        return met + raw.integrated.square().sum() + out.streams[1].sum()

    check(network)


@rules
@layouts
def test_what_a_tensor_hook_kept_does_not_change_later(
    rule: IntegrationRule, layout: torch.memory_format
) -> None:
    scale = noise(CHANNELS).requires_grad_()
    for norm in (norm_of(), norm_of(nn.Identity), norm_of(activation=False)):
        watch, batch = Watch(), batch_of(scale, layout)
        out = conv_of(rule)(batch)
        ended = norm(out, batch)
        for pathways in (batch, out, ended):
            watch.on(pathways)
        total(ended).backward()
        watch.assert_unchanged()


@both_blocks
@rules
def test_what_a_hook_of_a_blocks_module_kept_does_not_change_later(
    block: type[BasicBlock] | type[Bottleneck], rule: IntegrationRule
) -> None:
    names = ["conv1", "bn1", "conv1.integration", "downsample.0", "downsample.1"]
    for name in names:
        layer, watch = block_of(block, rule), Watch()

        def see(module: nn.Module, given: tuple, came: object, watch: Watch = watch) -> None:
            for seen in (*given, came):
                if isinstance(seen, StreamBatch):
                    watch.on(seen)
                elif isinstance(seen, tuple):  # an integration's
                    seen[1][0].register_hook(lambda g: watch.seen.append((g, g.clone())))

        layer.get_submodule(name).register_forward_hook(see)
        total(layer(batch_of(noise(CHANNELS).requires_grad_()))).backward()
        watch.assert_unchanged()


@rules
def test_a_block_that_nobody_watches_holds_a_map_less(rule: IntegrationRule) -> None:
    """Where norms alone read raw outputs, gradients are added in place: same numbers, less held."""
    found = []
    for watched in (False, True):
        torch.manual_seed(0)
        layer = BasicBlock(2, CHANNELS, CHANNELS, integration=rule).double()
        if watched:
            layer.conv1.register_forward_hook(lambda *_: None)
        loss = total(layer(batch_of(torch.ones(CHANNELS, dtype=torch.float64))))
        with AllocatedBytes() as allocated:
            loss.backward()
        found.append((allocated.total, [p.grad for p in layer.parameters()]))
    (less, grads), (more, same) = found
    rows, pixels, itemsize = 4, SIZE[0] * SIZE[1], 8
    assert more - less == rows * CHANNELS * pixels * itemsize
    assert all(map(torch.equal, grads, same))
