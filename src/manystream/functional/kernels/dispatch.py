"""Whether a map goes to a Triton kernel or to the plain operations: the one place that decides."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_CAPABILITY = (8, 0)

_EAGER_FROM_NUMEL = 1 << 25
"""Elements from which a kernel wins although Python launches it.

A Triton launch costs the host several times what a launch of a native operation does, and an eager
step waits for the host: that of a ResNet-18 at batch 128 took 41, 36, 30 and 27 ms on an H200 with
kernels from 2^22, 2^23, 2^24 and 2^25 elements on, and 32 ms with none. The last bound leaves them
the maps before the pool.
"""

_launches_are_free: ContextVar[bool] = ContextVar("manystream_launches_are_free", default=False)


def available(x: Tensor) -> bool:
    """Tell whether there are Triton kernels for x, (B, C, H, W)."""
    if x.dtype not in _DTYPES or x.numel() == 0:
        return False
    if interpreted():
        return x.device.type == "cpu" and _launches_are_free.get()
    return x.device.type == "cuda" and _supported(x.device)


def fused(x: Tensor) -> bool:
    """Tell whether an operation on the map x, (B, C, H, W), should run as a Triton kernel."""
    return available(x) and (_launches_are_free.get() or x.numel() >= _EAGER_FROM_NUMEL)


def leave_to_torch(x: Tensor) -> bool:
    """Tell whether a batch norm that keeps its output should run by torch's own autograd.

    That asks half as much of the host, for which small eager steps wait. On the CPU ours stays,
    since there all memory modes give the same bits.
    """
    return x.is_cuda and not fused(x)


def is_traced() -> bool:
    """Tell whether torch.compile or torch.func looks on, which want ordinary operations."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


@contextmanager
def launches_are_free(free: bool = True) -> Iterator[None]:
    """Let kernels run on maps of every size, as is best where a CUDA graph launches them."""
    token = _launches_are_free.set(free)
    try:
        yield
    finally:
        _launches_are_free.reset(token)


@cache
def interpreted() -> bool:
    """Tell whether Triton's interpreter runs the kernels on the CPU, as in the tests."""
    return os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None


@cache
def _supported(device: torch.device) -> bool:
    return (
        torch.version.hip is None
        and find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= _CAPABILITY
    )
