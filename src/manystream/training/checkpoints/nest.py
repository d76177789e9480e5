"""Nests of plain values and tensors, taken apart into strict JSON and named tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PLAIN = (bool, int, str, type(None))


def take_apart(nest: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split a nest of dicts, lists, tuples, numbers, strings, arrays and tensors.

    Args:
        nest: any of these within another; keys of dicts are strings or whole numbers.

    Returns:
        What JSON can hold, and the tensors by their path in the nest: contiguous, on the CPU, no
        two in one memory.

    Raises:
        TypeError: if there is anything else in it, by its path.

    Example:
        >>> tree, tensors = take_apart({"step": 3, "weights": [torch.ones(2)]})
        >>> tree
        {'dict': [['step', 3], ['weights', [{'tensor': 'weights/0'}]]]}
        >>> list(tensors)
        ['weights/0']
    """
    parts = _Parts()
    return parts.tree(nest, ""), parts.tensors


def put_together(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo :func:`take_apart`; every tensor has the strides that it had.

    Example:
        >>> put_together({"tuple": [1, {"tensor": "1"}]}, {"1": torch.ones(2)})
        (1, tensor([1., 1.]))
    """
    if isinstance(tree, list):
        return [put_together(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kind = next(iter(tree))
    inside = tree[kind]
    if kind == "dict":
        return {key: put_together(value, tensors) for key, value in inside}
    if kind == "tuple":
        return tuple(put_together(inside, tensors))
    if kind == "float":
        return float(inside)
    if kind == "array":
        return tensors[inside].numpy()
    return _restrided(tensors[inside], tree.get("stride"))


class _Parts:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._memory: set[int] = set()

    def tree(self, value: Any, path: str) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, Tensor):
            return self._tensor(value.detach(), path)
        if isinstance(value, np.ndarray):
            self._keep(torch.from_numpy(value.copy()), path)
            return {"array": path}
        if isinstance(value, dict):
            return {"dict": [self._item(key, inside, path) for key, inside in value.items()]}
        if type(value) in (tuple, torch.Size):
            return {"tuple": self._sequence(value, path)}
        if isinstance(value, list):
            return self._sequence(value, path)
        raise TypeError(
            f"{path or 'the state'} is {type(value).__module__}.{type(value).__qualname__}; a "
            "checkpoint holds tensors, numbers, strings, lists, tuples and dicts only"
        )

    def _item(self, key: Any, value: Any, path: str) -> list[Any]:
        if not isinstance(key, str | int):
            raise TypeError(f"{path or 'the state'} has the key {key!r}; expected a string")
        return [key, self.tree(value, _below(path, key))]

    def _sequence(self, values: Sequence[Any], path: str) -> list[Any]:
        return [self.tree(value, _below(path, i)) for i, value in enumerate(values)]

    def _tensor(self, tensor: Tensor, path: str) -> dict[str, Any]:
        self._keep(tensor.cpu(), path)
        stride = tensor.stride()
        if stride == _row_major(tensor.shape) or not _is_dense(tensor):
            return {"tensor": path}
        return {"tensor": path, "stride": list(stride)}

    def _keep(self, tensor: Tensor, path: str) -> None:
        tensor = tensor.contiguous()
        if tensor.stride() != _row_major(tensor.shape):  # a side of length 1 may have any stride
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        memory = tensor.untyped_storage().data_ptr()
        if memory in self._memory:
            tensor = tensor.clone()
            memory = tensor.untyped_storage().data_ptr()
        self._memory.add(memory)
        self.tensors[path] = tensor


def _below(path: str, key: str | int) -> str:
    return f"{path}/{key}" if path else str(key)


def _row_major(shape: torch.Size) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps, in whatever order."""
    span = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.numel() == span + 1


def _restrided(tensor: Tensor, stride: Sequence[int] | None) -> Tensor:
    if stride is None:
        return tensor
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)
