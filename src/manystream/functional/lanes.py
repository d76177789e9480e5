"""Lanes: each image stream's work in a CUDA stream of its own, beside the others'.

Kernels of small maps leave most of a GPU idle, and until they are integrated the streams do not
wait for each other. The host would be too slow to keep several lanes busy, so they are opened only
where a CUDA graph is captured, which keeps the order of the lanes and nothing more. The integrated
pathway stays in the lane that everything else runs in. Autograd runs each backward operation in the
lane of its forward operation, and waits where gradients change lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Lanes:
    """CUDA streams to run image streams in; made as they are asked for."""

    def __init__(self) -> None:
        self._lanes: list[torch.cuda.Stream] = []

    def first(self, number: int) -> list[torch.cuda.Stream]:
        """Return the lanes of so many image streams."""
        self._lanes += [torch.cuda.Stream() for _ in range(number - len(self._lanes))]
        return self._lanes[:number]


_usable: ContextVar[Lanes | None] = ContextVar("manystream_usable_lanes", default=None)
_open: ContextVar[Sequence[torch.cuda.Stream]] = ContextVar("manystream_open_lanes", default=())


@contextmanager
def usable(lanes: Lanes | None) -> Iterator[None]:
    """Let networks open these lanes; None keeps everything in one."""
    token = _usable.set(lanes)
    try:
        yield
    finally:
        _usable.reset(token)


@contextmanager
def side_by_side(num_streams: int) -> Iterator[None]:
    """Open a lane for each image stream, if lanes are usable: they begin and end together."""
    lanes = _usable.get()
    if lanes is None or num_streams < 2:
        yield
        return
    opened, around = lanes.first(num_streams), torch.cuda.current_stream()
    for lane in opened:
        lane.wait_stream(around)
    token = _open.set(opened)
    try:
        yield
    finally:
        _open.reset(token)
        for lane in opened:
            around.wait_stream(lane)


def each(function: Callable[..., T], *of_streams: Iterable[Any]) -> list[T]:
    """Call a function for every image stream, in its lane where lanes are open."""
    opened = _open.get()
    results = []
    for m, arguments in enumerate(zip(*of_streams, strict=True)):
        with torch.cuda.stream(opened[m]) if opened else nullcontext():
            results.append(function(*arguments))
    return results


def meet(tensors: Sequence[Tensor]) -> None:
    """Read here what each lane has made."""
    for tensor, made_in in zip(tensors, _open.get(), strict=False):
        read_here(tensor, made_in)


def here(tensor: Tensor) -> torch.cuda.Stream | None:
    """Return the CUDA stream that work on a tensor is given to now; None elsewhere than on CUDA."""
    return torch.cuda.current_stream(tensor.device) if tensor.is_cuda else None


def read_here(tensor: Tensor, made_in: torch.cuda.Stream | None) -> None:
    """Wait for the CUDA stream that makes a tensor, which stays in memory until it is read."""
    reader = here(tensor)
    if reader is not None and made_in is not None and reader != made_in:
        reader.wait_stream(made_in)
        tensor.record_stream(reader)
