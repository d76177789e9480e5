"""Build an optimizer: AdamW, SGD, or another by the path of its class."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module, metadata
from typing import Any

from torch.optim import SGD, AdamW, Optimizer

from manystream.choices import did_you_mean

_KNOWN: dict[str, tuple[Callable[..., Optimizer], dict[str, Any]]] = {
    "adamw": (AdamW, {}),
    "sgd": (SGD, {"momentum": 0.9, "nesterov": True}),
}


def build_optimizer(
    optimizer: str | Callable[..., Optimizer],
    groups: list[dict[str, Any]],
    learning_rate: float,
    arguments: Mapping[str, Any],
    *,
    fused: bool = False,
) -> Optimizer:
    """Build the optimizer that options name.

    Args:
        optimizer: ``adamw``, ``sgd``, the path of a class, or what takes parameter groups and lr.
        groups: parameter groups.
        learning_rate: of groups that have none of their own.
        arguments: further ones of the optimizer.
        fused: whether AdamW and SGD step in one kernel, which asks for floating-point parameters
            on a GPU.

    Raises:
        ValueError: if there is no such optimizer, or it does not take its arguments.
    """
    make, defaults = _look_up(optimizer)
    if fused and optimizer in _KNOWN:
        defaults = {**defaults, "fused": True}
    try:
        return make(groups, lr=learning_rate, **{**defaults, **arguments})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"optimizer {optimizer!r} does not take optimizer_arguments {arguments}: {error}"
        ) from error


def _look_up(
    optimizer: str | Callable[..., Optimizer],
) -> tuple[Callable[..., Optimizer], dict[str, Any]]:
    if not isinstance(optimizer, str):
        return optimizer, {}
    return _KNOWN[optimizer] if optimizer in _KNOWN else (_class_at(optimizer), {})


def _class_at(path: str) -> type[Optimizer]:
    """Find a class of an optimizer; nothing that is none is called.

    Importing a module runs its code, and the path may be anyone's: only a module of an installed
    package is imported, or one that somebody has imported already.

    Raises:
        ValueError: if there is none at the path.
    """
    module, _, name = path.rpartition(".")
    package = module.partition(".")[0]
    try:
        if module not in sys.modules and package not in metadata.packages_distributions():
            metadata.distribution(package)  # Installed for editing, a package lists no modules.
        found = getattr(import_module(module), name)
    except (ValueError, ImportError, AttributeError):
        raise ValueError(
            f"unknown optimizer {path!r}; expected one of {', '.join(_KNOWN)}, or the path of a "
            "class in an installed package, for example torch.optim.RAdam"
            f"{did_you_mean(path, _KNOWN)}"
        ) from None
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise ValueError(
            f"optimizer {path!r} is no subclass of torch.optim.Optimizer; expected one, for "
            "example torch.optim.RAdam"
        )
    return found
