"""Count memory by its storages: exact and repeatable on the CPU, the allocator's own on a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from manystream.functional import remat


def kept_bytes(forward: Callable[[], Tensor], exclude: Iterable[Tensor] = ()) -> int:
    """Count the bytes that a forward pass keeps alive for its backward pass.

    Every storage counts once, whole, however many tensors are views of it. What a memory mode
    rebuilds is not kept; what it rebuilds from is.

    Args:
        forward: runs the forward pass and returns what the backward pass would start from.
        exclude: tensors that live anyway, such as parameters and inputs.

    Returns:
        Bytes of the storages that autograd saved.

    Example:
        >>> x = torch.ones(10, requires_grad=True)
        >>> kept_bytes(lambda: x.exp().sum())
        40
    """
    kept: dict[int, int] = {}

    def save(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()

    with watching_kept(save):
        # The result holds the graph, and so the storages, until they have been counted.
        result = forward()
    for tensor in exclude:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    del result
    return sum(kept.values())


@contextmanager
def watching_kept(observer: Callable[[Tensor], object]) -> Iterator[None]:
    """Tell an observer of every tensor kept for backward, in every memory mode; maybe repeatedly.

    Not seen is what an operation keeps outside of autograd's saved tensors: batch statistics and
    reduced-precision copies of kernels, small beside a feature map.
    """

    def save(tensor: Tensor) -> Tensor:
        observer(tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
    with hooks, remat.observing(observer):
        yield


def peak_bytes(function: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Most bytes that were alive at once in a call, beyond those alive before it.

    Args:
        function: what is measured.
        device: where it allocates. On CUDA its allocator is asked; elsewhere the storages that
            operations return are counted, which does not see a kernel's own work space.

    Example:
        >>> peak_bytes(lambda: torch.ones(10) + torch.ones(10))
        120
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before: int = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        peak: int = torch.cuda.max_memory_allocated(device)
        return peak - before
    counter = _StorageCounter()
    with counter:
        function()
    return counter.peak


def bytes_over_time(
    function: Callable[[], object], device: torch.device | str = "cpu"
) -> list[int]:
    """Count the bytes alive after each operation of a call, backward ones too, beyond those before.

    Args: as :func:`peak_bytes`.

    Example:
        >>> bytes_over_time(lambda: torch.ones(10).exp())
        [40, 80]
    """
    if torch.device(device).type == "cuda":
        before: int = torch.cuda.memory_allocated(device)
        sampler = _Sampler(lambda: torch.cuda.memory_allocated(device) - before)
        with sampler:
            function()
    else:
        sampler = _count_over_time(function)
    return sampler.samples


def _count_over_time(function: Callable[[], object]) -> _Sampler:
    counter = _StorageCounter()
    sampler = _Sampler(lambda: counter.alive)
    with counter, sampler:
        function()
    return sampler


class _Sampler(TorchDispatchMode):
    """Reads a number after every operation."""

    def __init__(self, read: Callable[[], int]) -> None:
        super().__init__()
        self._read = read
        self.samples: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.samples.append(self._read())
        return result


class _StorageCounter(TorchDispatchMode):
    """Follows the life of every storage that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.alive = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What comes in and is not known lived before the call, and is not counted.
        self._known.update(t.untyped_storage() for t in tree_leaves((args, kwargs)) if _is_real(t))
        result = func(*args, **(kwargs or {}))
        for tensor in filter(_is_real, tree_leaves(result)):
            self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.alive -= size


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type != "meta"
