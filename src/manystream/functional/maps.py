"""Memory layout: channels-last maps of any rank, read as (rows · positions, channels)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def as_matrix(maps: Tensor) -> Tensor:
    """Read (N, C, ...) as (N · positions, C): a view of channels-last maps, a copy of others."""
    return maps.movedim(1, -1).flatten(0, -2)


def is_channels_last(maps: Tensor) -> bool:
    """Tell whether the channels of a position lie beside each other in memory."""
    return maps.movedim(1, -1).is_contiguous()


def channels_last(maps: Tensor) -> Tensor:
    """Lay maps out channels-last; those that are so already are given back as they are."""
    return maps if is_channels_last(maps) else empty_maps(maps.shape, maps).copy_(maps)


def empty_maps(shape: Sequence[int], like: Tensor) -> Tensor:
    """Allocate channels-last maps of a shape (N, C, ...), a view of nothing."""
    strides, step = [], shape[1]
    for side in reversed(shape[2:]):
        strides.append(step)
        step *= side
    return like.new_empty_strided(tuple(shape), (step, 1, *reversed(strides)))
