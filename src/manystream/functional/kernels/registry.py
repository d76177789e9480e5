"""Names for kernels in ``torch.ops.manystream``: torch can trace what it cannot see into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

_library = torch.library.Library("manystream", "FRAGMENT")
_DEVICES = ("CUDA", "CPU")  # on the CPU they run in Triton's interpreter

F = TypeVar("F", bound=Callable[..., Any])


def operation(schema: str, *, shapes: Callable[..., Any]) -> Callable[[F], Callable[..., Any]]:
    """Register a function that launches kernels, under its own name.

    It has no gradient of its own: the operations of ``functional`` call it forward and backward.

    Args:
        schema: its arguments and results in torch's notation.
        shapes: gives empty results for given arguments, for tracing.

    Returns:
        A decorator; what it gives is called like the function, through torch's dispatcher.
    """

    def register(function: F) -> Callable[..., Any]:
        name = function.__name__
        _library.define(f"{name}{schema}")
        for device in _DEVICES:
            _library.impl(name, function, device)
        torch.library.register_fake(f"manystream::{name}", shapes, lib=_library)
        called: Callable[..., Any] = getattr(torch.ops.manystream, name).default
        return called

    return register
