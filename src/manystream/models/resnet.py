"""ResNet on several streams with an integrated pathway; only that pathway reaches the head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from manystream.batch import Inputs, StreamBatch
from manystream.functional import Pool, lanes
from manystream.layers import (
    BasicBlock,
    Bottleneck,
    StreamConv2d,
    StreamNormAct2d,
    SubsetNorms,
    conv_norm_act,
)
from manystream.models.families import family as look_up_family
from manystream.models.families import has_batch_norm
from manystream.models.memory_modes import MemoryMode
from manystream.models.network import StreamNetwork
from manystream.presence import Presence

BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {
    "basic": BasicBlock,
    "bottleneck": Bottleneck,
}

STAGE_WIDTHS = (64, 128, 256, 512)

_WIDEST = 16  # 8,192 channels at the end; a typing error beyond

DEPTHS: dict[int, tuple[str, tuple[int, int, int, int]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
}


class StreamResNet(StreamNetwork):
    """A ResNet (v1.5) in which M streams and an integrated pathway run side by side.

    Args:
        family: how the streams are mixed, a name in ``models.families.FAMILIES``.
        block: ``"basic"`` or ``"bottleneck"``.
        layers: blocks of each of the four stages, for example (2, 2, 2, 2).
        widths: channels of each stage, before a bottleneck's expansion.
        in_channels: channels of each stream, by name or in order.
        num_classes: outputs of the head, for classification the classes.
        dropout: probability of dropping a feature before the head.
        subset_norms: whether the integrated pathway has a batch norm for every subset of the
            streams, see :class:`manystream.layers.SubsetNorms`.
        memory: what a training step keeps, ``"fast"``, ``"balanced"``, ``"lean"`` or ``"min"``, see
            :mod:`manystream.models.memory_modes`; :attr:`memory` changes it later.

    Raises:
        ValueError: if an argument is outside of what is named here.

    Source:
        He et al., "Deep Residual Learning for Image Recognition", 2016.

    Example:
        >>> net = StreamResNet(family="li_net3", block="basic", layers=(1, 1, 1, 1),
        ...                    widths=(4, 8, 8, 8), in_channels=[3, 1], num_classes=5)
        >>> net([torch.zeros(2, 3, 32, 32), torch.zeros(2, 1, 32, 32)]).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        *,
        family: str = "li_net3",
        block: str = "basic",
        layers: Sequence[int] = (2, 2, 2, 2),
        widths: Sequence[int] = STAGE_WIDTHS,
        in_channels: Mapping[str, int] | Sequence[int] = (3, 1),
        num_classes: int,
        dropout: float = 0.0,
        subset_norms: bool = False,
        memory: MemoryMode = "fast",
    ) -> None:
        super().__init__(in_channels, num_classes)
        _check_layout(block, layers, widths, dropout)
        self._layout = {
            "family": family,
            "block": block,
            "layers": tuple(layers),
            "widths": tuple(widths),
            "in_channels": self.in_channels,
            "num_classes": num_classes,
            "dropout": dropout,
            "subset_norms": subset_norms,
        }
        rule = look_up_family(family)
        if rule.single and self.num_streams > 1:
            raise ValueError(f"family {family!r} has one stream; these are {self.in_channels}")
        self.joins_inputs = rule.joins_inputs
        stream_channels = list(self.in_channels.values())
        if rule.joins_inputs:
            stream_channels = [sum(stream_channels)]
        num_streams = len(stream_channels)
        integrated_norm = rule.integrated_norm
        if subset_norms:
            _check_subset_norms(family)
            integrated_norm = partial(SubsetNorms, num_streams=num_streams)
        make_block = partial(
            BLOCKS[block],
            num_streams,
            integration=rule.integration,
            integrated_norm=integrated_norm,
        )
        self.conv1 = StreamConv2d(stream_channels, widths[0], 7, 2, 3, integration=rule.integration)
        pool = Pool(kernel_size=3, stride=2, padding=1)
        self.bn1 = StreamNormAct2d(widths[0], num_streams, integrated_norm, pool=pool)
        channels, stages = widths[0], []
        for stage, (depth, width) in enumerate(zip(layers, widths, strict=True), start=1):
            blocks = []
            for i in range(depth):
                stride = 2 if stage > 1 and i == 0 else 1
                last = rule.integration is not None and stage == 4 and i == depth - 1
                blocks.append(make_block(channels, width, stride, last=last))
                channels = width * BLOCKS[block].expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.dropout = nn.Dropout(dropout)
        features = channels if rule.integration is not None else channels * num_streams
        self.fc = nn.Linear(features, num_classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.memory = memory

    @property
    def layout(self) -> dict[str, Any]:
        """Arguments that build the network again, with the memory mode that it is in now."""
        return {**self._layout, "memory": self.memory}

    def to_dict(self) -> dict[str, Any]:
        """Give ``type`` and the layout."""
        return {"type": "resnet", **self.layout}

    def forward_batch(self, batch: StreamBatch) -> Tensor:
        """Logits of a compact batch's views in their order, shape (V, num_classes)."""
        with lanes.side_by_side(len(self.conv1.streams)):
            for stage in self._stages(batch):
                batch = stage  # what came before is let go
        features = _fused(batch.map(lambda maps: maps.mean(dim=(2, 3))))
        logits: Tensor = self.fc(self.dropout(features))
        return logits

    def forward_features(
        self,
        inputs: Inputs | StreamBatch,
        present: Tensor | None = None,
        *,
        blanked_mask: Mapping[str, Tensor] | Mapping[int, Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """Integrated maps of the four stages, in the order of the inputs.

        Args: as :meth:`forward`.

        Returns:
            Four tensors of shape (B, C_s, H_s, W_s); strides 4, 8, 16 and 32 of the input. A
            network without an integrated pathway gives its streams' maps joined along channels.
        """
        batch = self.to_batch(inputs, present, blanked_mask)
        return tuple(batch.views.restore(_fused(stage)) for stage in self._stages(batch))

    def _stages(self, batch: StreamBatch) -> Iterator[StreamBatch]:
        if self.joins_inputs:
            joined = batch.joined()
            batch = StreamBatch((joined,), Presence.all_present(len(joined), 1))
        batch = conv_norm_act(self.conv1, self.bn1, batch)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            batch = stage(batch)
            yield batch


def resnet_size(depth: int, width: float = 1.0) -> dict[str, Any]:
    """Arguments of a :class:`StreamResNet` of the usual depths.

    Args:
        depth: 18 or 34 (basic blocks), 50 or 101 (bottlenecks).
        width: multiplier of the widths 64, 128, 256, 512, up to 16.

    Raises:
        ValueError: if there is no such depth, or the width is outside of that.

    Example:
        >>> resnet_size(18, 0.5)
        {'block': 'basic', 'layers': (2, 2, 2, 2), 'widths': (32, 64, 128, 256)}
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth is {depth}; expected one of {', '.join(map(str, DEPTHS))}")
    if not 0 < width <= _WIDEST:
        raise ValueError(f"width is {width}; expected a multiplier above 0, up to {_WIDEST}")
    block, layers = DEPTHS[depth]
    widths = tuple(max(round(w * width), 1) for w in STAGE_WIDTHS)
    return {"block": block, "layers": layers, "widths": widths}


def _fused(batch: StreamBatch) -> Tensor:
    """Return what the head sees: the integrated pathway, or else the streams side by side."""
    return batch.joined() if batch.integrated is None else batch.integrated


def _check_subset_norms(family: str) -> None:
    if not has_batch_norm(family):
        norm = look_up_family(family).integrated_norm
        has = "no integrated pathway" if norm is None else "a group norm there"
        raise ValueError(
            f"subset_norms gives the integrated pathway a batch norm for every subset, and family "
            f"{family!r} has {has}; choose li_net3, or leave subset_norms out"
        )


def _check_layout(block: str, layers: Sequence[int], widths: Sequence[int], dropout: float) -> None:
    if block not in BLOCKS:
        raise ValueError(f"unknown block {block!r}; expected one of {', '.join(BLOCKS)}")
    if len(layers) != 4 or len(widths) != 4 or min(*layers, *widths) < 1:
        raise ValueError(
            f"layers are {tuple(layers)} and widths {tuple(widths)}; "
            "expected four positive numbers each"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; expected a probability in [0, 1)")
