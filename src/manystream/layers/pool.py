"""Pooling of every stream and of the integrated pathway."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from manystream.streams import StreamBatch


class StreamMaxPool2d(nn.Module):
    """Max-pooling of each stream's present rows and of the integrated pathway.

    Args:
        kernel_size: side of the window.
        stride: step of the window.
        padding: implicit padding by minus infinity.
    """

    def __init__(self, kernel_size: int, stride: int, padding: int = 0) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding

    def forward(self, batch: StreamBatch) -> StreamBatch:
        """Shapes (B_m, C, H, W) and (B, C, H, W) to (B_m, C, H', W') and (B, C, H', W')."""
        return batch.map(lambda x: F.max_pool2d(x, self.kernel_size, self.stride, self.padding))
