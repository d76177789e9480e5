"""How long a step takes; needs nothing but torch, so that it can time any version of a library."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import median, quantiles

import torch


def wait(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def times_ms(step: Callable[[], object], steps: int, device: torch.device) -> list[float]:
    """Time steps one after the other, by CUDA events on a GPU and by the clock elsewhere."""
    if device.type == "cuda":
        return _event_times_ms(step, steps)
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1000)
    return times


def _event_times_ms(step: Callable[[], object], steps: int) -> list[float]:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    torch.cuda.synchronize()
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairwise(marks)]


def step_times(times: Sequence[float]) -> dict[str, float]:
    """Summarise times as ``step_ms``, the median, and ``step_spread_ms``, of the quartiles."""
    if len(times) < 2:  # too few for quartiles
        return {"step_ms": median(times), "step_spread_ms": 0.0}
    low, middle, high = quantiles(times, n=4, method="inclusive")
    return {"step_ms": middle, "step_spread_ms": high - low}


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Summarise values as their median, least and greatest."""
    return {name: median(values), f"{name}_least": min(values), f"{name}_greatest": max(values)}


def in_turns(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure every way once a round, so that a slow moment of the machine falls on all.

    Args:
        ways: measure once and return a number, by name.
        rounds: numbers of each way.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, measure in ways.items():
            found[name].append(measure())
    return found
