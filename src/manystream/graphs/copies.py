"""Copies that graphs work on: parameters in autocast's type, gradients, and the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from manystream.batch import StreamBatch, map_target, target_tensors


def leaves_of(parameters: Sequence[nn.Parameter], device: str) -> list[Tensor]:
    """Return the parameters without history, kernels cast at once as autocast would cast each.

    The gradients of the copies are cast back at once as well.
    """
    leaves = [p.detach() for p in parameters]
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        cast = [i for i, p in enumerate(leaves) if p.dim() > 1 and p.dtype == torch.float32]
        copies = [torch.empty_like(leaves[i], dtype=dtype) for i in cast]
        torch._foreach_copy_(list(map(_flat, copies)), [_flat(leaves[i]) for i in cast])
        for i, copy in zip(cast, copies, strict=True):
            leaves[i] = copy
    return [leaf.requires_grad_() for leaf in leaves]


def copy_gradients(found: Sequence[Tensor | None], into: Sequence[Tensor]) -> None:
    """Copy what was found, one launch for many tensors: those of one dtype, laid out alike."""
    groups: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for source, target in zip(found, into, strict=True):
        if source is None:
            continue
        if _dense_strides(source) != _dense_strides(target):
            target.copy_(source)
            continue
        groups.setdefault(source.dtype, []).append((_flat(target), _flat(source)))
    for pairs in groups.values():
        torch._foreach_copy_([t for t, _ in pairs], [s for _, s in pairs])


def _dense_strides(x: Tensor) -> list[int]:
    """Strides of the dimensions that have more than one entry: the others' say nothing."""
    return [stride for side, stride in zip(x.shape, x.stride(), strict=True) if side > 1]


def _flat(x: Tensor) -> Tensor:
    """Return all entries of a dense tensor in the order of memory."""
    return x.as_strided((x.numel(),), (1,))


def static_copy(batch: StreamBatch) -> StreamBatch:
    """Copy a batch into memory that replays read; it always has an order to restore."""
    return StreamBatch(
        tuple(x.clone(memory_format=torch.channels_last) for x in batch.streams),
        batch.presence,
        target=map_target(Tensor.clone, batch.target),
        views=replace(
            batch.views,
            full=_full(batch).clone(),
            sample=batch.views.sample.clone(),
            weight=batch.views.weight.clone(),
        ),
    )


def refill(static: StreamBatch, batch: StreamBatch) -> None:
    """Write a batch into the memory of a static one of its shape, without waiting."""
    for target, source in zip(_tensors(static), _tensors(batch), strict=True):
        target.copy_(source, non_blocking=True)


def _tensors(batch: StreamBatch) -> list[Tensor]:
    views = batch.views
    of_views = [] if views.are_full else [views.sample, views.weight]
    return [*batch.streams, *target_tensors(batch.target), _full(batch), *of_views]


def _full(batch: StreamBatch) -> Tensor:
    index = batch.views.full
    if index is not None:
        return index
    return torch.arange(len(batch), device=batch.streams[0].device)
