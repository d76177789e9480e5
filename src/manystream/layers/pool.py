"""Pooling of every stream and of the integrated pathway."""

from __future__ import annotations

from torch import nn

from manystream.streams import StreamBatch


class StreamMaxPool2d(nn.MaxPool2d):
    """``nn.MaxPool2d`` on each stream's present rows and on the integrated pathway."""

    def forward(self, batch: StreamBatch) -> StreamBatch:
        """Shapes (B_m, C, H, W) and (B, C, H, W) to (B_m, C, H', W') and (B, C, H', W')."""
        return batch.map(super().forward)
