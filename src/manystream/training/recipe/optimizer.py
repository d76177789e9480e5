"""The optimizer: AdamW, SGD or another, with a learning rate for every part of the network."""

# Annotations are not postponed: the command line reads these fields from another module.
import math
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from importlib import import_module, metadata
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from manystream.choices import did_you_mean
from manystream.models import StreamNetwork
from manystream.training.recipe.parts import named_parts, part_names
from manystream.training.recipe.ranges import check_above_zero, check_at_least

STEM = "stem"
"""The first convolution and its norm, on every pathway."""

_STEM_PREFIXES = ("conv1.", "bn1.")

_KNOWN: dict[str, tuple[Callable[..., Optimizer], dict[str, Any]]] = {
    "adamw": (AdamW, {}),
    "sgd": (SGD, {"momentum": 0.9, "nesterov": True}),
}


@dataclass
class OptimizerOptions:
    """Which optimizer, and its step sizes.

    Raises:
        ValueError: if a number is out of its range, there is no such optimizer, or it does not
            take its arguments.
    """

    optimizer: str | Callable[..., Optimizer] = "adamw"
    """adamw, sgd (momentum 0.9, Nesterov), or the path of a class, for example torch.optim.RAdam;
    in Python also anything that takes parameter groups and lr."""
    optimizer_arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the optimizer, for example {betas: [0.9, 0.95]}."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    learning_rate_multipliers: dict[str, float] = field(default_factory=dict)
    """Multiplier of the learning rate for parts of the network, for example {depth: 0.5, stem: 2}:
    streams by name; shared, the integrated pathway and the head; stem, the first layer of every
    pathway. A stream's stem has both."""
    weight_decay: float = 0.05
    """Weight decay of kernels; norms, biases and scalars have none."""

    def __post_init__(self) -> None:
        check_above_zero(self, "learning_rate")
        check_at_least(self, 0, "weight_decay")
        for part, multiplier in self.learning_rate_multipliers.items():
            if not 0 < multiplier < math.inf:
                raise ValueError(
                    f"learning_rate_multipliers has {part}: {multiplier}; expected more than 0"
                )
        if isinstance(self.optimizer, str):
            _build(self, [{"params": [torch.zeros(1, requires_grad=True)]}])


def make_optimizer(
    network: StreamNetwork, options: OptimizerOptions, *, fused: bool = False
) -> Optimizer:
    """An optimizer over the trained parameters, grouped by learning rate and weight decay.

    Each group has beside its ``lr`` the ``multiplier`` that it was made with.

    Args:
        network: what is trained.
        options: which optimizer.
        fused: whether AdamW and SGD step in one kernel, which asks for floating-point parameters
            on a GPU.

    Raises:
        ValueError: if a multiplier names no part of the network.
    """
    check_multipliers(options.learning_rate_multipliers, part_names(network))
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for (name, parameter), part in zip(
        network.named_parameters(), named_parts(network).values(), strict=True
    ):
        if parameter.requires_grad:
            multiplier = _multiplier(name, part, options.learning_rate_multipliers)
            groups.setdefault((multiplier, parameter.dim() > 1), []).append(parameter)
    return _build(
        options,
        [
            {
                "params": parameters,
                "lr": options.learning_rate * multiplier,
                "weight_decay": options.weight_decay if decays else 0.0,
                "multiplier": multiplier,
            }
            for (multiplier, decays), parameters in groups.items()
        ],
        **({"fused": True} if fused and options.optimizer in _KNOWN else {}),
    )


def check_multipliers(multipliers: Collection[str], parts: Collection[str]) -> None:
    """Refuse a learning rate multiplier of what the network does not have.

    Raises:
        ValueError: naming the parts.
    """
    known = [*parts, STEM]
    for name in multipliers:
        if name not in known:
            raise ValueError(
                f"learning_rate_multipliers names {name!r}; the network's parts are "
                f"{', '.join(known)}"
            )


def _multiplier(name: str, part: str, multipliers: dict[str, float]) -> float:
    of_stem = multipliers.get(STEM, 1.0) if name.startswith(_STEM_PREFIXES) else 1.0
    return multipliers.get(part, 1.0) * of_stem


def _build(options: OptimizerOptions, groups: list[dict[str, Any]], **arguments: Any) -> Optimizer:
    make, defaults = _look_up(options.optimizer)
    arguments = {**defaults, **options.optimizer_arguments, **arguments}
    try:
        return make(groups, lr=options.learning_rate, **arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"optimizer {options.optimizer!r} does not take optimizer_arguments "
            f"{options.optimizer_arguments}: {error}"
        ) from error


def _look_up(
    optimizer: str | Callable[..., Optimizer],
) -> tuple[Callable[..., Optimizer], dict[str, Any]]:
    if not isinstance(optimizer, str):
        return optimizer, {}
    if optimizer in _KNOWN:
        return _KNOWN[optimizer]
    return _class_at(optimizer), {}


def _class_at(path: str) -> type[Optimizer]:
    """Find a class of an optimizer; nothing that is none is called.

    Raises:
        ValueError: if there is none at the path.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(_import_installed(module), name)
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


def _import_installed(name: str) -> ModuleType:
    """Import a module of an installed package: an import runs code, and the name may be anyone's.

    Raises:
        ImportError: if it is of no such package, and nobody has imported it yet.
    """
    if name in sys.modules:
        return sys.modules[name]
    package = name.partition(".")[0]
    if package not in metadata.packages_distributions():
        metadata.distribution(package)  # Installed for editing, a package lists no modules.
    return import_module(name)
