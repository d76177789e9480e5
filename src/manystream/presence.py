"""Which sample has which stream, and the order of samples that makes each stream's rows one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

Rows = slice | Tensor
"""Where a stream's rows stand in the sorted batch: a slice if they are one run, else an index."""


@dataclass(frozen=True, eq=False)
class Presence:
    """Who has which stream, known on the host, and the sorted order that follows from it.

    Samples are sorted so that the rows of a stream form one contiguous run: of every stream where
    such an order exists, as it does for two (only one | both | only the other), else of those that
    can, taken in turn. Placing a stream's rows into the full batch is then a slice, and an index
    only where they are no run.

    Build one with :meth:`from_mask`, :meth:`from_blanked` or :meth:`all_present`.

    Attributes:
        mask: present streams in the caller's order, shape (B, M), bool, on the CPU.
        order: caller's number of each sorted sample, shape (B,), int64, on the CPU; None where
            the caller's order is already sorted.
        restore_index: sorted position of each of the caller's samples, shape (B,), int64, on the
            device of the batch; None where ``order`` is.
        rows: for each stream, where its rows stand in the sorted batch.

    Example:
        >>> presence = Presence.from_mask(torch.tensor([[True, True], [False, True], [True, True]]))
        >>> presence.order.tolist(), presence.rows
        ([1, 0, 2], (slice(1, 3, None), slice(0, 3, None)))
    """

    mask: Tensor
    order: Tensor | None
    restore_index: Tensor | None
    rows: tuple[Rows, ...]

    @classmethod
    def from_mask(cls, mask: Tensor) -> Presence:
        """Sort a batch by the streams its samples have.

        Args:
            mask: True where sample b has stream m, shape (B, M), bool. A mask that lies on a
                device is read here, which waits for that device; keep masks on the CPU.

        Raises:
            ValueError: if the mask has another shape or dtype, or a sample has no stream.
        """
        mask = _checked_mask(mask)
        if bool(mask.all()):
            return cls.all_present(*mask.shape)
        patterns = _patterns(mask)
        rank = {p: i for i, p in enumerate(_order_of_patterns(frozenset(patterns)))}
        order = sorted(range(len(patterns)), key=lambda b: rank[patterns[b]])
        rows = tuple(_rows(mask[order, m]) for m in range(mask.shape[1]))
        if order == list(range(len(order))):
            return cls(mask, None, None, rows)
        order_index = torch.tensor(order)
        return cls(mask, order_index, torch.argsort(order_index), rows)

    @classmethod
    def from_blanked(
        cls, blanked: Mapping[int, Tensor], num_samples: int, num_streams: int
    ) -> Presence:
        """Everything is present but what ``blanked`` names.

        Args:
            blanked: for some streams, True where the sample lacks it, shape (B,), bool.
            num_samples: batch size B.
            num_streams: number of streams M.

        Raises:
            ValueError: if a stream does not exist, a mask has another shape or dtype, or a sample
                is left with no stream.
        """
        return cls.from_mask(mask_from_blanked(blanked, num_samples, num_streams))

    @classmethod
    def all_present(cls, num_samples: int, num_streams: int) -> Presence:
        """Every sample has every stream."""
        mask = torch.ones(num_samples, num_streams, dtype=torch.bool)
        return cls(mask, None, None, (slice(0, num_samples),) * num_streams)

    @property
    def num_samples(self) -> int:
        """Batch size B."""
        return self.mask.shape[0]

    @property
    def num_streams(self) -> int:
        """Number of streams M."""
        return self.mask.shape[1]

    def num_rows(self, stream: int) -> int:
        """Samples that have a stream, B_m."""
        rows = self.rows[stream]
        return rows.stop - rows.start if isinstance(rows, slice) else len(rows)

    def samples(self, stream: int) -> Tensor:
        """Caller's numbers of a stream's rows, in their sorted order, shape (B_m,), int64, CPU."""
        present = self.mask[:, stream]
        if self.order is None:
            return present.nonzero().flatten()
        return self.order[present[self.order]]

    def restore(self, sorted_samples: Tensor) -> Tensor:
        """Put what came out in sorted order back into the caller's order.

        Args:
            sorted_samples: shape (B, ...).

        Returns:
            Shape (B, ...), in the caller's order.
        """
        if self.restore_index is None:
            return sorted_samples
        return sorted_samples.index_select(0, self.restore_index)

    def to(self, device: torch.device | str) -> Presence:
        """Bring the indices, not the mask, to a device, without waiting for it."""
        return replace(
            self,
            restore_index=None
            if self.restore_index is None
            else upload(self.restore_index, device),
            rows=tuple(r if isinstance(r, slice) else upload(r, device) for r in self.rows),
        )


def upload(index: Tensor, device: torch.device | str) -> Tensor:
    """Copy a small host tensor to a device; to CUDA through pinned memory, so nobody waits."""
    if torch.device(device).type == "cuda" and not index.is_cuda:
        index = index.pin_memory()
    return index.to(device, non_blocking=True)


def mask_from_blanked(blanked: Mapping[int, Tensor], num_samples: int, num_streams: int) -> Tensor:
    """Turn ``{stream: lost}`` into a presence mask.

    Args:
        blanked: for some streams, True where the sample lacks it, shape (B,), bool.
        num_samples: batch size B.
        num_streams: number of streams M.

    Returns:
        Shape (B, M), bool, on the CPU.

    Raises:
        ValueError: if a stream does not exist or a mask has another shape or dtype.
    """
    mask = torch.ones(num_samples, num_streams, dtype=torch.bool)
    for stream, lost in blanked.items():
        if stream not in range(num_streams):
            raise ValueError(
                f"blanked_mask names stream {stream}; streams are 0 to {num_streams - 1}"
            )
        lost = torch.as_tensor(lost)
        if lost.dtype != torch.bool or lost.shape != (num_samples,):
            raise ValueError(
                f"blanked_mask[{stream}] is {lost.dtype} of shape {tuple(lost.shape)}; "
                f"expected bool of shape ({num_samples},), True where the sample lacks the stream"
            )
        mask[:, stream] = ~lost.cpu()
    return mask


def _checked_mask(mask: Tensor) -> Tensor:
    mask = torch.as_tensor(mask)
    if mask.dtype != torch.bool or mask.dim() != 2 or mask.shape[1] == 0:
        raise ValueError(
            f"present is {mask.dtype} of shape {tuple(mask.shape)}; "
            "expected bool of shape (B, M), True where sample b has stream m"
        )
    mask = mask.cpu()
    empty = (~mask.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        shown = ", ".join(map(str, empty[:8])) + (", …" if len(empty) > 8 else "")
        raise ValueError(
            f"samples without any stream: {shown} ({len(empty)} of {len(mask)}); "
            "every sample needs at least one stream, leave these out of the batch"
        )
    return mask


def _patterns(mask: Tensor) -> list[int]:
    """Write each sample's streams as the bits of one number."""
    powers = [1 << m for m in range(mask.shape[1])]
    return [sum(p for p, has in zip(powers, row, strict=True) if has) for row in mask.tolist()]


def _rows(present: Tensor) -> Rows:
    index = present.nonzero().flatten()
    if len(index) == 0:
        return slice(0, 0)
    first, last = int(index[0]), int(index[-1])
    return slice(first, last + 1) if last - first + 1 == len(index) else index


@lru_cache(maxsize=4096)
def _order_of_patterns(patterns: frozenset[int]) -> tuple[int, ...]:
    """Order patterns so that the streams, taken in turn, become runs as long as an order exists.

    The order that makes every stream a run is the consecutive-ones arrangement of the patterns;
    where there is none, a stream that would break those before it is left to an index.
    """
    kept = 0
    arranged: tuple[int, ...] = (0,)
    for stream in range(max(patterns).bit_length()):
        trial = kept | 1 << stream
        found = _arrange(frozenset(p & trial for p in patterns))
        if found is not None:
            kept, arranged = trial, found
    return tuple(sorted(patterns, key=lambda p: (arranged.index(p & kept), p)))


def _arrange(patterns: frozenset[int]) -> tuple[int, ...] | None:
    """Find an order of the patterns in which every bit's ones are consecutive, or None."""
    return next(_extend(0, patterns), None)


def _extend(seen: int, remaining: frozenset[int]) -> Iterator[tuple[int, ...]]:
    """Yield the ways to go on after patterns whose union is ``seen``; what ended stays ended."""
    if not remaining:
        yield ()
    for pattern in sorted(remaining):
        rest = remaining - {pattern}
        ended = seen & ~pattern
        if not any(ended & p for p in rest):
            for tail in _extend(seen | pattern, rest):
                yield (pattern, *tail)
