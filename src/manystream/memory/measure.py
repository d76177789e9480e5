"""Count what a forward pass keeps for its backward pass, by its storages; exact on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


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
