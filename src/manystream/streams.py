"""The batch that flows through the layers: one dense tensor per stream, and the integrated one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from manystream.presence import Presence, mask_from_blanked, upload

Inputs = Sequence[Tensor | None] | Mapping[str, Tensor]
"""Full batches, (B, C_m, H, W) per stream: in the model's order (None: all absent) or by name."""

Target = Any
"""What the samples are to give: a tensor, or dicts, lists and tuples of tensors, each (B, ...)."""


@dataclass(frozen=True, eq=False)
class StreamBatch:
    """Compact streams, the integrated pathway, and who has which stream.

    Attributes:
        streams: the present rows of each stream, shape (B_m, C_m, H, W), in sorted order. Empty
            after the last layer, where only the integrated pathway goes on.
        presence: who has which stream, and the order of samples.
        integrated: the integrated pathway, shape (B, C, H, W), in sorted order; None before the
            first layer.
        target: what each sample is to give, as its task takes it, in the caller's order: a tensor
            (B, ...), for classification (B,), int64, or a tree of such; None if unknown.
        ids: name of each sample, B of them, in the caller's order, for messages; None if unknown.
    """

    streams: tuple[Tensor, ...]
    presence: Presence
    integrated: Tensor | None = None
    target: Target = None
    ids: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return self.presence.num_samples

    @classmethod
    def from_full(
        cls, inputs: Sequence[Tensor], presence: Presence, target: Target = None
    ) -> StreamBatch:
        """Take the present rows out of full batches; an absent image is never read.

        Args:
            inputs: one batch per stream, shape (B, C_m, H, W).
            presence: who has which stream.
            target: what each sample is to give, B entries in each of its tensors.
        """
        streams = tuple(_take_rows(x, presence, m) for m, x in enumerate(inputs))
        return cls(streams, presence.to(inputs[0].device), target=target)

    def keep(self, mask: Tensor) -> StreamBatch:
        """The same batch with fewer streams present; a sample left with none is dropped.

        Args:
            mask: streams to keep where they are present, shape (B, M), bool, on the CPU.

        Returns:
            A batch before the first layer, of the samples that keep a stream, in the same order.
        """
        mask = mask & self.presence.mask
        remaining = mask.any(dim=1).nonzero().flatten()
        presence = Presence.from_mask(mask[remaining])
        streams = []
        for m, rows in enumerate(self.streams):
            row_of_sample = torch.empty(len(self), dtype=torch.int64)
            row_of_sample[self.presence.samples(m)] = torch.arange(len(rows))
            kept_rows = row_of_sample[remaining[presence.samples(m)]]
            streams.append(rows.index_select(0, upload(kept_rows, rows.device)))
        target = self.target
        if len(remaining) < len(self):
            target = map_target(lambda t: t.index_select(0, upload(remaining, t.device)), target)
        ids = None if self.ids is None else tuple(self.ids[b] for b in remaining.tolist())
        return StreamBatch(tuple(streams), presence.to(streams[0].device), target=target, ids=ids)

    def joined(self) -> Tensor:
        """All streams of every sample side by side, in sorted order; an absent one is zero.

        Returns:
            Shape (B, C_0 + … + C_{M-1}, H, W).
        """
        first = self.streams[0]
        channels = [x.shape[1] for x in self.streams]
        joined = first.new_zeros(len(self), sum(channels), *first.shape[2:])
        starts = accumulate(channels, initial=0)
        for x, place, start in zip(self.streams, self.presence.rows, starts, strict=False):
            joined[place, start : start + x.shape[1]] = x
        return joined

    def map(self, function: Callable[[Tensor], Tensor]) -> StreamBatch:
        """Apply a function to every stream and to the integrated pathway."""
        integrated = None if self.integrated is None else function(self.integrated)
        return replace(self, streams=tuple(map(function, self.streams)), integrated=integrated)

    def to(self, device: torch.device | str) -> StreamBatch:
        """Bring the images, the target and the indices to a device."""
        moved = self.map(lambda x: x.to(device, non_blocking=True))
        target = map_target(lambda t: t.to(device, non_blocking=True), self.target)
        return replace(moved, presence=self.presence.to(device), target=target)

    def pin_memory(self) -> StreamBatch:
        """Move the images and the target to page-locked memory."""
        target = map_target(Tensor.pin_memory, self.target)
        return replace(self.map(Tensor.pin_memory), target=target)


def map_target(function: Callable[[Tensor], Tensor], target: Target) -> Target:
    """Apply a function to every tensor of a target; what is no tensor stays as it is."""
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, target)


def _take_rows(full: Tensor, presence: Presence, stream: int) -> Tensor:
    samples = presence.samples(stream)
    if presence.order is None and len(samples) == len(full):
        return full
    return full.index_select(0, upload(samples, full.device))


def make_batch(
    inputs: Inputs,
    in_channels: Mapping[str, int],
    *,
    present: Tensor | None = None,
    blanked_mask: Mapping[str, Tensor] | Mapping[int, Tensor] | None = None,
    target: Target = None,
) -> StreamBatch:
    """Check what a caller hands to a network and make it compact.

    Args:
        inputs: full batches of shape (B, C_m, H, W), floating point: a sequence in the model's
            order or a mapping by name. A stream that is None or missing from the mapping is
            absent from every sample.
        in_channels: name and channels of the model's streams, in its order.
        present: True where sample b has stream m, shape (B, M), bool.
        blanked_mask: for some streams, by number or name, True where the sample lacks it,
            shape (B,), bool.
        target: what each sample is to give, B entries in each of its tensors.

    Raises:
        ValueError: if a stream is unknown, streams differ in batch size, height or width, a
            stream has another number of channels, images are not floating point, or a sample has
            no stream.
    """
    named = _by_name(inputs, list(in_channels))
    _check_images(named, in_channels)
    mask = _presence_mask(named, list(in_channels), present, blanked_mask)
    some = next(iter(named.values()))
    full = [named.get(n, some.new_empty(0, c, *some.shape[2:])) for n, c in in_channels.items()]
    return StreamBatch.from_full(full, Presence.from_mask(mask), target)


def read_batch(batch: Any, in_channels: Mapping[str, int]) -> StreamBatch:
    """Make a loader's batch compact.

    Args:
        batch: ``(stream_0, …, stream_{M-1})`` or the same with a target at the end; a dict by
            stream name with an optional ``target``, ``present`` and ``ids``, a name per sample for
            messages; or a :class:`StreamBatch`.
        in_channels: name and channels of the model's streams, in its order.

    Raises:
        ValueError: if the batch has none of these shapes or does not fit the model. The target is
            left to the task to check.
    """
    if isinstance(batch, StreamBatch):
        return batch
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


def _by_name(inputs: Inputs | Tensor, names: list[str]) -> dict[str, Tensor]:
    if not isinstance(inputs, Mapping):
        if isinstance(inputs, Tensor) or len(inputs) != len(names):
            came = "one tensor" if isinstance(inputs, Tensor) else f"{len(inputs)} streams"
            raise ValueError(
                f"inputs are {came}; expected a list of {len(names)} tensors, {', '.join(names)}"
            )
        inputs = {n: x for n, x in zip(names, inputs, strict=True) if x is not None}
    unknown = [n for n in inputs if n not in names]
    if unknown:
        raise ValueError(
            f"unknown stream {unknown[0]!r}; this model's streams are {', '.join(names)}"
        )
    if not inputs:
        raise ValueError(f"inputs hold no stream; expected at least one of {', '.join(names)}")
    return {n: inputs[n] for n in names if n in inputs}


def _check_images(images: Mapping[str, Any], in_channels: Mapping[str, int]) -> None:
    first_name, first = next(iter(images.items()))
    for name, x in images.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"stream {name!r} is {type(x).__name__}; expected a torch.Tensor")
        if x.dim() != 4 or x.shape[1] != in_channels[name]:
            raise ValueError(
                f"stream {name!r} has shape {tuple(x.shape)}; "
                f"expected (B, {in_channels[name]}, H, W)"
            )
        if not x.is_floating_point():
            raise ValueError(
                f"stream {name!r} is {x.dtype}; expected floating point: convert and normalise the "
                "images first, for example x.float() / 255"
            )
        if (len(x), *x.shape[2:]) != (len(first), *first.shape[2:]):
            raise ValueError(
                f"streams differ in batch size, height or width: {first_name!r} is "
                f"{tuple(first.shape)}, {name!r} is {tuple(x.shape)}"
            )


def _presence_mask(
    images: Mapping[str, Tensor],
    names: list[str],
    present: Tensor | None,
    blanked_mask: Mapping[str, Tensor] | Mapping[int, Tensor] | None,
) -> Tensor:
    num_samples = len(next(iter(images.values())))
    mask = mask_from_blanked(_by_number(blanked_mask or {}, names), num_samples, len(names))
    if present is not None:
        present = torch.as_tensor(present)
        if present.dtype != torch.bool or present.shape != mask.shape:
            raise ValueError(
                f"present is {present.dtype} of shape {tuple(present.shape)}; "
                f"expected bool of shape {tuple(mask.shape)}, True where the sample has the stream"
            )
        mask &= present.cpu()
    return mask & torch.tensor([n in images for n in names])


def _by_number(
    blanked: Mapping[str, Tensor] | Mapping[int, Tensor], names: list[str]
) -> dict[int, Tensor]:
    unknown = [s for s in blanked if isinstance(s, str) and s not in names]
    if unknown:
        raise ValueError(
            f"blanked_mask names stream {unknown[0]!r}; this model's streams are {', '.join(names)}"
        )
    return {names.index(s) if isinstance(s, str) else s: lost for s, lost in blanked.items()}
