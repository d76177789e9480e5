"""Count memory by its storages: exact and repeatable on the CPU, the allocator's own on a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def kept_bytes(forward: Callable[[], Tensor], exclude: Iterable[Tensor] = ()) -> int:
    """Bytes that a forward pass keeps alive for its backward pass.

    Every storage counts once, whole, however many tensors are views of it.

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

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        # The result holds the graph, and so the storages, until they have been counted.
        result = forward()
    for tensor in exclude:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    del result
    return sum(kept.values())


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
    with _StorageCounter() as counter:
        function()
    return counter.peak


class _StorageCounter(TorchDispatchMode):
    """Follows the life of every storage that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What comes in and is not known lived before the call, and is not counted.
        self._known.update(t.untyped_storage() for t in tree_leaves(args) if _is_real(t))
        result = func(*args, **(kwargs or {}))
        for tensor in filter(_is_real, tree_leaves(result)):
            self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self._alive += size
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self._alive -= size


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type != "meta"
