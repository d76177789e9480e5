"""ResNet on several streams with an integrated pathway; only that pathway reaches the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from manystream.layers import (
    BasicBlock,
    Bottleneck,
    StreamConv2d,
    StreamMaxPool2d,
    StreamNormAct2d,
)
from manystream.models.families import family as look_up_family
from manystream.models.network import StreamNetwork
from manystream.streams import Inputs, StreamBatch

BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {
    "basic": BasicBlock,
    "bottleneck": Bottleneck,
}

STAGE_WIDTHS = (64, 128, 256, 512)


class StreamResNet(StreamNetwork):
    """A ResNet (v1.5) in which M streams and an integrated pathway run side by side.

    Args:
        family: how the streams are mixed, a name in ``models.families.FAMILIES``.
        block: ``"basic"`` or ``"bottleneck"``.
        layers: blocks of each of the four stages, for example (2, 2, 2, 2).
        widths: channels of each stage, before a bottleneck's expansion.
        in_channels: channels of each stream, by name or in order.
        num_classes: number of classes.
        dropout: probability of dropping a feature before the head.

    Raises:
        ValueError: if an argument is outside of what is named here.

    Source:
        He et al., "Deep Residual Learning for Image Recognition", 2016; DESIGN section 2.

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
    ) -> None:
        super().__init__(in_channels, num_classes)
        _check_layout(block, layers, widths, dropout)
        rule = look_up_family(family)
        make_block = partial(
            BLOCKS[block],
            self.num_streams,
            integration=rule.integration,
            integrated_norm=rule.integrated_norm,
        )
        self.conv1 = StreamConv2d(
            list(self.in_channels.values()), widths[0], 7, 2, 3, integration=rule.integration
        )
        self.bn1 = StreamNormAct2d(widths[0], self.num_streams, rule.integrated_norm)
        self.maxpool = StreamMaxPool2d(kernel_size=3, stride=2, padding=1)
        channels, stages = widths[0], []
        for stage, (depth, width) in enumerate(zip(layers, widths, strict=True), start=1):
            blocks = []
            for i in range(depth):
                stride = 2 if stage > 1 and i == 0 else 1
                last = stage == len(layers) and i == depth - 1
                blocks.append(make_block(channels, width, stride, last=last))
                channels = width * BLOCKS[block].expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward_batch(self, batch: StreamBatch) -> Tensor:
        """Logits of a compact batch in its sorted order, shape (B, num_classes)."""
        features = self._stages(batch)[-1]
        logits: Tensor = self.fc(self.dropout(features.mean(dim=(2, 3))))
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
            Four tensors of shape (B, C_s, H_s, W_s); strides 4, 8, 16 and 32 of the input.
        """
        batch = self.to_batch(inputs, present, blanked_mask)
        return tuple(map(batch.presence.restore, self._stages(batch)))

    def _stages(self, batch: StreamBatch) -> list[Tensor]:
        batch = self.maxpool(self.bn1(self.conv1(batch)))
        integrated: list[Tensor] = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            batch = stage(batch)
            assert batch.integrated is not None, "every layer integrates"
            integrated.append(batch.integrated)
        return integrated


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
