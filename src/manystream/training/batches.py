"""The shapes in which a loader may hand over a batch, read into the one that layers take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from manystream.batch import StreamBatch, make_batch


def read_batch(batch: Any, in_channels: Mapping[str, int], num_classes: int) -> StreamBatch:
    """Make a loader's batch compact.

    Args:
        batch: ``(stream_0, …, stream_{M-1})`` or the same with a target at the end; a dict by
            stream name with an optional ``target``, ``present`` and ``ids``, a name per sample for
            messages; or a :class:`StreamBatch`.
        in_channels: name and channels of the model's streams, in its order.
        num_classes: number of classes that a target may name.

    Raises:
        ValueError: if the batch has none of these shapes or does not fit the model.
    """
    compact = batch if isinstance(batch, StreamBatch) else _from_loader(batch, in_channels)
    _check_target(compact.target, len(compact), num_classes)
    return compact


def _from_loader(batch: Any, in_channels: Mapping[str, int]) -> StreamBatch:
    if isinstance(batch, Mapping):
        streams = dict(batch)
        target, present = streams.pop("target", None), streams.pop("present", None)
        ids = streams.pop("ids", None)
        compact = make_batch(streams, in_channels, present=present, target=target)
        return replace(compact, ids=None if ids is None else tuple(map(str, ids)))
    num_streams = len(in_channels)
    if not isinstance(batch, Sequence) or len(batch) not in (num_streams, num_streams + 1):
        came = f"{len(batch)} tensors" if isinstance(batch, Sequence) else type(batch).__name__
        raise ValueError(
            f"a batch of the loader is {came}; expected ({', '.join(in_channels)}, target), a dict "
            "with these keys, or a StreamBatch"
        )
    target = batch[num_streams] if len(batch) > num_streams else None
    return make_batch(batch[:num_streams], in_channels, target=target)


def _check_target(target: Tensor | None, num_samples: int, num_classes: int) -> None:
    if target is None:
        return
    if target.dtype != torch.int64 or target.shape != (num_samples,):
        raise ValueError(
            f"target is {target.dtype} of shape {tuple(target.shape)}; "
            f"expected int64 of shape ({num_samples},)"
        )
    # A device's target is not read back: that would wait for the device.
    if (
        num_samples
        and not target.is_cuda
        and not 0 <= int(target.min()) <= int(target.max()) < num_classes
    ):
        raise ValueError(
            f"targets are {int(target.min())} to {int(target.max())}; "
            f"expected 0 to {num_classes - 1}, the model has {num_classes} classes"
        )
