"""The least time that the operations of a step could take on a machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from harness.timing import times_ms

_MATRIX_SIDE = {"cuda": 8192, "cpu": 1024}
_COPY_BYTES = {"cuda": 1 << 31, "cpu": 1 << 26}
_REPEATS = 10


@dataclass(frozen=True)
class Ceilings:
    """What a machine can do at most, measured on it.

    Attributes:
        flops_per_s: rate of a large matrix product in the type of the step.
        bytes_per_s: rate of a large copy, counting bytes read and bytes written.
    """

    flops_per_s: float
    bytes_per_s: float

    @staticmethod
    def measure(device: torch.device, dtype: torch.dtype) -> Ceilings:
        """Time a matrix product of random numbers, and a copy."""
        side = _MATRIX_SIDE[device.type]
        left, right = torch.randn(2, side, side, device=device).to(dtype).unbind()
        source = torch.empty(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        product_s = _seconds(lambda: left @ right, device)
        copy_s = _seconds(lambda: target.copy_(source), device)
        return Ceilings(2 * side**3 / product_s, 2 * source.numel() / copy_s)


@dataclass(frozen=True)
class Roofline:
    """The least that a step's operations need.

    Attributes:
        flops: floating-point operations of its convolutions and matrix products.
        bytes: bytes that its operations read and write, each tensor once per operation.
        ms: sum over operations of the longer of both, at the machine's ceilings.
    """

    flops: int
    bytes: int
    ms: float


def roofline_of(step: Callable[[], object], ceilings: Ceilings) -> Roofline:
    """Run a step once and add up what each operation must compute and move.

    An operation that reads a tensor in two passes, as a norm does, is charged one: the time is
    below what any code of these operations reaches.
    """
    with _Adding(ceilings) as adding:
        step()
    return Roofline(adding.flops, adding.bytes, adding.seconds * 1000)


class _Adding(TorchDispatchMode):
    def __init__(self, ceilings: Ceilings) -> None:
        super().__init__()
        self.ceilings = ceilings
        self.flops, self.bytes, self.seconds = 0, 0, 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if _moves_nothing(func):
            return out
        flops = _flops(func, args, kwargs, out)
        moved = _bytes([*tree_leaves(args), *tree_leaves(kwargs), *tree_leaves(out)])
        self.flops += flops
        self.bytes += moved
        compute_s, memory_s = flops / self.ceilings.flops_per_s, moved / self.ceilings.bytes_per_s
        self.seconds += max(compute_s, memory_s)
        return out


def _moves_nothing(func: Any) -> bool:
    """Whether an operation only makes a view, or memory that nobody has written."""
    if "empty" in func.__name__ or func is torch.ops.aten._unsafe_view.default:
        return True
    returned = func._schema.returns
    aliases = [r.alias_info for r in returned if r.alias_info is not None]
    return bool(aliases) and not any(a.is_write for a in aliases)


_IN_PLACE = {torch.ops.aten.addmm_: torch.ops.aten.addmm}


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    packet = func._overloadpacket
    count = flop_registry.get(_IN_PLACE.get(packet, packet))
    return int(count(*args, **kwargs, out_val=out)) if count is not None else 0


def _bytes(leaves: Iterable[Any]) -> int:
    return sum(x.numel() * x.element_size() for x in leaves if isinstance(x, Tensor))


def _seconds(operation: Callable[[], object], device: torch.device) -> float:
    operation()
    return median(times_ms(operation, _REPEATS, device)) / 1000
