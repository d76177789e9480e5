"""The batch that flows through the layers, and the boundary that makes one of what a user has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from manystream.presence import Presence, Views, mask_from_blanked, upload

Inputs = Sequence[Tensor | None] | Mapping[str, Tensor]
"""Full batches, (B, C_m, H, W) per stream: in the model's order (None: all absent) or by name."""

Target = Any
"""What the samples are to give: a tensor, or dicts, lists and tuples of tensors, each (B, ...)."""


_NOT_GIVEN: Any = None
"""Full views, made of the presence."""


@dataclass(frozen=True, eq=False)
class StreamBatch:
    """Compact streams, the integrated pathway, and who has which stream.

    Attributes:
        streams: the present rows of each stream, shape (B_m, C_m, ...), in sorted order. Empty
            after the last layer, where only the integrated pathway goes on.
        presence: who has which stream, and the order of samples.
        integrated: the integrated pathway, shape (V, C, ...), a row for each view; None before the
            first layer.
        target: what each sample is to give, as its task takes it, in the caller's order: a tensor
            (B, ...), for classification (B,), int64, or a tree of such; None if unknown.
        ids: name of each sample, B of them, in the caller's order, for messages; None if unknown.
        views: with which subsets of its streams each sample is seen; by default its full view.

    Raises:
        ValueError: if there are not as many streams, or rows of a stream, as ``presence`` says.
    """

    streams: tuple[Tensor, ...]
    presence: Presence
    integrated: Tensor | None = None
    target: Target = None
    ids: tuple[str, ...] | None = None
    views: Views = field(default=_NOT_GIVEN)

    def __post_init__(self) -> None:
        if self.views is _NOT_GIVEN:  # else it comes from a batch that was looked at
            _check_maps(self.streams, self.integrated, self.presence)
            views = Views.full_only(self.presence)
            for some in (*self.streams, self.integrated)[:1]:
                views = views if some is None else views.to(some.device)
            object.__setattr__(self, "views", views)

    def __len__(self) -> int:
        return self.presence.num_samples

    @classmethod
    def from_full(
        cls, inputs: Sequence[Tensor], presence: Presence, target: Target = None
    ) -> StreamBatch:
        """Take the present rows out of full batches; an absent image is never read.

        Args:
            inputs: one batch per stream, shape (B, C_m, ...); one of no rows where all are absent.
            presence: who has which stream.
            target: what each sample is to give, B entries in each of its tensors.

        Raises:
            ValueError: if there are not as many streams or samples as ``presence`` says.
        """
        _check_count(len(inputs), presence)
        return cls(
            tuple(_take_rows(x, presence, m) for m, x in enumerate(inputs)), presence, target=target
        )

    def keep(self, mask: Tensor) -> StreamBatch:
        """Return the same batch with fewer streams present; a sample left with none is dropped.

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
            streams.append(select(rows, row_of_sample[remaining[presence.samples(m)]]))
        target = self.target
        if len(remaining) < len(self):
            target = map_target(lambda t: select(t, remaining), target)
        ids = None if self.ids is None else tuple(self.ids[b] for b in remaining.tolist())
        return StreamBatch(tuple(streams), presence, target=target, ids=ids)

    def joined(self) -> Tensor:
        """Lay all streams side by side, one row for each view; a stream that it lacks is zero.

        Returns:
            Shape (V, C_0 + … + C_{M-1}, ...).
        """
        first = self.streams[0]
        channels = [x.shape[1] for x in self.streams]
        joined = first.new_zeros(self.views.num_views, sum(channels), *first.shape[2:])
        starts = accumulate(channels, initial=0)
        for m, (x, start) in enumerate(zip(self.streams, starts, strict=False)):
            for run in self.views.entering(m):
                joined[run.views, start : start + x.shape[1]] = x[run.rows]
            if len(x) == 0:  # it adds nothing, so that its gradients are zero and not missing
                joined = joined + x.sum()
        return joined

    def target_by_view(self) -> Target:
        """Return what each view is to give: the target of its sample, V entries in each tensor."""
        return map_target(lambda t: t.index_select(0, self.views.sample), self.target)

    def with_maps(self, streams: tuple[Tensor, ...], integrated: Tensor | None) -> StreamBatch:
        """Give the same samples other maps, as a layer does."""
        return StreamBatch(streams, self.presence, integrated, self.target, self.ids, self.views)

    def map(self, function: Callable[[Tensor], Tensor]) -> StreamBatch:
        """Apply a function to every stream and to the integrated pathway."""
        integrated = None if self.integrated is None else function(self.integrated)
        return self.with_maps(tuple(map(function, self.streams)), integrated)

    def to(self, device: torch.device | str) -> StreamBatch:
        """Bring the images, the target and the indices to a device."""

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)

        return replace(
            self.map(move),
            target=map_target(move, self.target),
            views=self.views.to(device),
        )

    def pin_memory(self) -> StreamBatch:
        """Move the images and the target to page-locked memory."""
        return replace(
            self.map(Tensor.pin_memory),
            target=map_target(Tensor.pin_memory, self.target),
        )


def select(rows: Tensor, index: Tensor) -> Tensor:
    """Take rows by an index that lies on the host, without waiting for the device."""
    return rows.index_select(0, upload(index, rows.device))


def _check_count(number: int, presence: Presence) -> None:
    if number != presence.num_streams:
        raise ValueError(
            f"there are {number} streams, and the presence has {presence.num_streams}; expected a "
            "tensor for each, of no rows where nobody has it"
        )


def map_target(function: Callable[[Tensor], Tensor], target: Target) -> Target:
    """Apply a function to every tensor of a target; what is no tensor stays as it is."""
    return tree_map_only(Tensor, function, target)


def target_tensors(target: Target) -> list[Tensor]:
    """List the tensors of a target, always in one order."""
    return [leaf for leaf in tree_leaves(target) if isinstance(leaf, Tensor)]


def _take_rows(full: Tensor, presence: Presence, stream: int) -> Tensor:
    samples = presence.samples(stream)
    if full.dim() != 4 or (len(samples) and len(full) != presence.num_samples):
        raise ValueError(
            f"inputs[{stream}] has shape {tuple(full.shape)}; expected "
            f"({presence.num_samples}, C, H, W), a row for each sample of the presence"
        )
    if presence.order is None and len(samples) == len(full):
        return full
    return select(full, samples)


def _check_maps(streams: Sequence[Tensor], integrated: Tensor | None, presence: Presence) -> None:
    if streams:
        _check_count(len(streams), presence)
    for m, x in enumerate(streams):
        if x.dim() != 4 or len(x) != presence.num_rows(m):
            raise ValueError(
                f"streams[{m}] has shape {tuple(x.shape)}; expected (B_{m}, C, H, W) with the "
                f"{presence.num_rows(m)} rows that the presence says: StreamBatch.from_full "
                "takes them out of a full batch"
            )
    if integrated is not None and (integrated.dim() != 4 or len(integrated) != len(presence.mask)):
        raise ValueError(
            f"integrated has shape {tuple(integrated.shape)}; expected "
            f"({presence.num_samples}, C, H, W), a row for each sample of the presence"
        )


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
    mask = mask_from_blanked(
        _by_number({} if blanked_mask is None else blanked_mask, names), num_samples, len(names)
    )
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
    if not isinstance(blanked, Mapping):
        raise ValueError(
            f"blanked_mask is {type(blanked).__name__}; expected a mapping of streams to masks, "
            f'for example {{"{names[-1]}": torch.tensor([True, False])}}, True where the sample '
            "lacks the stream"
        )
    unknown = [s for s in blanked if isinstance(s, str) and s not in names]
    if unknown:
        raise ValueError(
            f"blanked_mask names stream {unknown[0]!r}; this model's streams are {', '.join(names)}"
        )
    numbers = [names.index(s) if isinstance(s, str) else s for s in blanked]
    if len(set(numbers)) < len(numbers):
        raise ValueError(
            f"blanked_mask names a stream twice: {', '.join(map(repr, blanked))}; this model's "
            f"streams are {', '.join(names)}, numbered from 0"
        )
    return dict(zip(numbers, blanked.values(), strict=True))
