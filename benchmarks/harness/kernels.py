"""What kinds of kernels a step spends its time in."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

_STEPS = 3

_KINDS = {
    "optimizer and casts": "multi_tensor",
    "pooling": "pool",
    "norm": r"_statistics_kernel|_apply_kernel|_reduce_kernel|_gradient_kernel|_norm",
    "convolution": "fprop|dgrad|wgrad|conv",
    "matrix product": "nvjet|gemm|cutlass|splitk",
    "copies": "memcpy|memset|copy|fill",
    "elementwise": "elementwise|reduce|catarray",
}
"""Patterns of kernel names, tried in this order."""


@dataclass(frozen=True)
class KernelTime:
    """Time on the GPU that one kind of kernel takes in a step.

    Attributes:
        ms: milliseconds.
        launches: kernels.
    """

    ms: float
    launches: float


def kernel_times(step: Callable[[], object]) -> dict[str, KernelTime]:
    """Profile a few steps on a GPU.

    Returns:
        Time by kind of kernel, the longest first.
    """
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        for _ in range(_STEPS):
            step()
        torch.cuda.synchronize()
    times: dict[str, KernelTime] = {}
    for event in profiler.key_averages():
        if event.device_time_total > 0:
            kind = kind_of(event.key)
            old = times.get(kind, KernelTime(0.0, 0.0))
            ms = event.device_time_total / 1000 / _STEPS
            times[kind] = KernelTime(old.ms + ms, old.launches + event.count / _STEPS)
    return dict(sorted(times.items(), key=lambda item: -item[1].ms))


def kind_of(kernel: str) -> str:
    """Kind of a kernel, by its name."""
    for kind, pattern in _KINDS.items():
        if re.search(pattern, kernel, re.IGNORECASE):
            return kind
    return "other"
