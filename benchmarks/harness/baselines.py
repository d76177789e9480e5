"""What users run instead: masked execution and its relatives, with the weights of our networks.

Every stream holds all B rows. Absent ones are multiplied by zero after each convolution; batch norm
runs on the gathered present rows and is scattered back into zeros at each layer. The mask is
float32, as ``mask.float()`` gives it: under autocast the product out of place is float32 too, in
place it stays what the convolution gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from itertools import chain
from typing import cast

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from manystream.layers import (
    BasicBlock,
    Bottleneck,
    LinearIntegration,
    ScalarIntegration,
    StreamConv2d,
    StreamNormAct2d,
)
from manystream.models import StreamResNet

Block = BasicBlock | Bottleneck
Layer = tuple[StreamConv2d, StreamNormAct2d]

Pathways = tuple[list[Tensor], Tensor]
"""Each stream with all its rows, and the integrated pathway; all (B, C, H, W)."""

Masks = Sequence[Tensor | None]
"""Who is present in each stream, shape (B,), bool, on the device; None: everyone, and no mask."""

COMPILED = "torch.compile (dropout off)"

_COMPILED_MEMORY_BUDGET = 0.5


class MaskedNet(nn.Module):
    """Masked execution of a network, which keeps its parameters and buffers.

    Args:
        network: of a family with an integrated pathway.
        in_place: whether masks, sums, residuals and ReLUs work in place; the contributions to the
            integrated pathway are held in a list and then summed otherwise.
        checkpointed: whether each block is under ``torch.utils.checkpoint``, which moves running
            statistics twice.
        masking: whether samples may lack a stream; without it, all work on masks is left out.

    Raises:
        ValueError: if the network has no integrated pathway.
    """

    def __init__(
        self,
        network: StreamResNet,
        in_place: bool,
        *,
        checkpointed: bool = False,
        masking: bool = True,
    ) -> None:
        super().__init__()
        if network.conv1.integration is None:
            raise ValueError("the network has no integrated pathway; expected one that mixes")
        self.network = network
        self.in_place = in_place
        self.checkpointed = checkpointed
        self.masking = masking

    def forward(self, inputs: Sequence[Tensor], present: Tensor) -> Tensor:
        """Logits, shape (B, num_classes).

        Args:
            inputs: full batches, shape (B, C_m, H, W); absent images must be finite.
            present: shape (B, M), bool, on the device.
        """
        net = self.network
        masks: Masks = present.unbind(1) if self.masking else [None] * len(inputs)
        run = self._checkpointed_block if self.checkpointed else self._block
        paths = self._stem(inputs, masks)
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            for block in cast("Iterable[Block]", stage):
                paths = run(block, paths, masks)
        logits: Tensor = net.fc(net.dropout(paths[1].mean(dim=(2, 3))))
        return logits

    def _stem(self, inputs: Sequence[Tensor], masks: Masks) -> Pathways:
        net = self.network
        raw = self._mask_raw(net.conv1, inputs, masks)
        out = raw, self._integrate(net.conv1, raw, None)
        out = _each(self._relu, self._norm(net.bn1, out, masks))
        pool = net.bn1.pool
        assert pool is not None
        return _each(lambda x: F.max_pool2d(x, *pool), out)

    def _block(self, block: Block, paths: Pathways, masks: Masks) -> Pathways:
        *first, last = _layers(block)
        out = paths
        for conv, norm in first:
            out = _each(self._relu, self._norm(norm, self._conv(conv, out, masks), masks))
        out = self._norm(last[1], self._conv(last[0], out, masks), masks)
        identity = paths
        if block.downsample is not None:
            conv, norm = cast("Layer", tuple(block.downsample))
            identity = self._norm(norm, self._conv(conv, paths, masks), masks)
        streams = [self._add_relu(y, x) for y, x in zip(out[0], identity[0], strict=True)]
        return streams, self._add_relu(out[1], identity[1])

    def _checkpointed_block(self, block: Block, paths: Pathways, masks: Masks) -> Pathways:
        def run(*maps: Tensor) -> tuple[Tensor, ...]:
            streams, integrated = self._block(block, (list(maps[:-1]), maps[-1]), masks)
            return (*streams, integrated)

        maps = checkpoint(run, *paths[0], paths[1], use_reentrant=False)
        return list(maps[:-1]), maps[-1]

    def _conv(self, layer: StreamConv2d, paths: Pathways, masks: Masks) -> Pathways:
        raw = self._mask_raw(layer, paths[0], masks)
        return raw, self._integrate(layer, raw, paths[1])

    def _mask_raw(
        self, layer: StreamConv2d, streams: Sequence[Tensor], masks: Masks
    ) -> list[Tensor]:
        modules = zip(layer.streams, streams, masks, strict=True)
        return [self._masked(_stock_conv(conv, x), mask) for conv, x, mask in modules]

    def _masked(self, raw: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return raw
        factor = mask.float().view(-1, 1, 1, 1)
        return raw.mul_(factor) if self.in_place else raw * factor

    def _integrate(
        self, layer: StreamConv2d, raw: list[Tensor], integrated: Tensor | None
    ) -> Tensor:
        rule = layer.integration
        assert isinstance(rule, LinearIntegration | ScalarIntegration)
        previous = [] if integrated is None else [_previous(rule, integrated)]
        parts = chain(previous, (rule.contribution(m, y) for m, y in enumerate(raw)))
        if self.in_place:
            return reduce(Tensor.add_, parts)
        return reduce(Tensor.add, list(parts))

    def _norm(self, layer: StreamNormAct2d, paths: Pathways, masks: Masks) -> Pathways:
        modules = zip(layer.streams, paths[0], masks, strict=True)
        streams = [_masked_norm(norm, x, mask) for norm, x, mask in modules]
        assert layer.integrated is not None
        return streams, _norm(layer.integrated, paths[1])

    def _relu(self, x: Tensor) -> Tensor:
        return x.relu_() if self.in_place else x.relu()

    def _add_relu(self, x: Tensor, identity: Tensor) -> Tensor:
        return self._relu(x.add_(identity) if self.in_place else x + identity)


def _stock_conv(conv: nn.Module, x: Tensor) -> Tensor:
    """Without what ours does for few channels; the bias comes later."""
    assert isinstance(conv, nn.Conv2d)
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding)


class CompiledNet(nn.Module):
    """The plain code under ``torch.compile``, which recomputes until its memory budget holds.

    Everything is present, so shapes are static. What it recomputes lies in generated code: bytes
    kept for backward cannot be told apart in it.

    Args:
        network: as for :class:`MaskedNet`.
        memory_budget: 1 keeps all, 0 recomputes all.
    """

    def __init__(self, network: StreamResNet, memory_budget: float) -> None:
        super().__init__()
        self.plain = MaskedNet(network, in_place=False, masking=False)
        self.memory_budget = memory_budget
        self._compiled = torch.compile(self.plain.forward, dynamic=False)

    def forward(self, inputs: Sequence[Tensor], present: Tensor) -> Tensor:
        """Logits, shape (B, num_classes); arguments as for :class:`MaskedNet`."""
        with torch._functorch.config.patch(activation_memory_budget=self.memory_budget):
            logits: Tensor = self._compiled(inputs, present)
        return logits


BASELINES: dict[str, Callable[[StreamResNet], nn.Module]] = {
    "masked in-place": lambda network: MaskedNet(network, in_place=True),
    "masked out-of-place": lambda network: MaskedNet(network, in_place=False),
    "masked in-place, checkpointed": lambda network: MaskedNet(
        network, in_place=True, checkpointed=True
    ),
    "plain (dropout off)": lambda network: MaskedNet(network, in_place=True, masking=False),
    COMPILED: lambda network: CompiledNet(network, _COMPILED_MEMORY_BUDGET),
}
"""Ways to run a network, called as ``module(inputs, present)``."""


def _layers(block: Block) -> list[Layer]:
    layers = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
    return [*layers, (block.conv3, block.bn3)] if isinstance(block, Bottleneck) else layers


def _previous(rule: LinearIntegration | ScalarIntegration, integrated: Tensor) -> Tensor:
    assert rule.integrated_weight is not None
    z = F.conv2d(integrated, rule.integrated_weight, stride=rule.stride)
    if isinstance(rule, LinearIntegration):
        return z
    assert rule.integrated_scalar is not None
    return rule.integrated_scalar * z


def _masked_norm(norm: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return _norm(norm, x)
    rows = x[mask]
    out = torch.zeros_like(x)
    if len(rows):
        out[mask] = _norm(norm, rows)
    return out


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    if not isinstance(norm, nn.BatchNorm2d):
        y: Tensor = norm(x)
        return y
    # One value per channel has no variance.
    training = norm.training and x.shape[0] * x.shape[2] * x.shape[3] > 1
    if training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return F.batch_norm(
        x,
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        training,
        norm.momentum or 0.0,
        norm.eps,
    )


def _each(function: Callable[[Tensor], Tensor], paths: Pathways) -> Pathways:
    return [function(x) for x in paths[0]], function(paths[1])
