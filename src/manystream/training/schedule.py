"""Move the learning rate over a run."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, OneCycleLR, ReduceLROnPlateau

from manystream.training.options import FitOptions

_ONE_CYCLE_RISE = 0.3
"""Share of a one-cycle run in which the learning rate rises, unless a warm-up is given."""


def make_schedules(
    optimizer: Optimizer, options: FitOptions, num_steps: int | None
) -> list[dict[str, Any]]:
    """Make the learning rate schedules of a run, in Lightning's form.

    Args:
        optimizer: whose groups have the peak learning rates, and move in proportion.
        options: which schedule.
        num_steps: optimizer steps of the whole run; None if nobody knows, then schedules move by
            epoch.
    """
    length = options.epochs if num_steps is None else num_steps
    interval = "epoch" if num_steps is None else "step"
    warmup_epochs = 1.0 if options.warmup_epochs is None else options.warmup_epochs
    num_warmup = min(round(length * warmup_epochs / options.epochs), length)
    if options.schedule == "plateau":
        warmup = {"scheduler": _linear_warmup(optimizer, num_warmup), "interval": interval}
        plateau = _plateau(optimizer, options)
        return [warmup, {"scheduler": plateau, "interval": "epoch", "monitor": options.monitor}]
    if options.schedule == "one_cycle":
        return [{"scheduler": _one_cycle(optimizer, options, length), "interval": interval}]
    share = _share(options, length, num_warmup)
    return [{"scheduler": LambdaLR(optimizer, share), "interval": interval}]


def warmup_cosine(step: int, num_warmup: int, num_steps: int, final: float = 0.0) -> float:
    """Return a step's share of the peak learning rate, from a linear warm-up down to ``final``.

    Example:
        >>> [round(warmup_cosine(s, 2, 6), 2) for s in range(7)]
        [0.5, 1.0, 1.0, 0.85, 0.5, 0.15, 0.0]
    """
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / max(num_steps - num_warmup, 1)
    return final + (1 - final) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def warmup_steps(step: int, num_warmup: int, milestones: list[float], factor: float) -> float:
    """Return a step's share of the peak learning rate: a warm-up, then a factor per milestone.

    Example:
        >>> [warmup_steps(s, 2, [3, 5], 0.5) for s in range(6)]
        [0.5, 1.0, 1.0, 0.5, 0.5, 0.25]
    """
    reached = factor ** bisect_right(milestones, step)
    return reached * min((step + 1) / num_warmup, 1.0) if num_warmup else reached


def _share(options: FitOptions, length: int, num_warmup: int) -> Callable[[int], float]:
    if options.schedule == "cosine":
        final = options.final_learning_rate / options.learning_rate
        return lambda step: warmup_cosine(step, num_warmup, length, final)
    milestones = _milestones(options, length) if options.schedule == "step" else []
    return lambda step: warmup_steps(step, num_warmup, milestones, options.learning_rate_factor)


def _milestones(options: FitOptions, length: int) -> list[float]:
    """List the steps at which the learning rate falls."""
    every = options.step_epochs
    epochs = every if isinstance(every, list) else range(every, options.epochs, every)
    return [epoch * length / options.epochs for epoch in epochs]


def _linear_warmup(optimizer: Optimizer, num_warmup: int) -> LinearLR:
    # A recursion in the present learning rate, so that it goes together with plateau.
    start = 1 / max(num_warmup, 1)
    return LinearLR(optimizer, start_factor=start, total_iters=max(num_warmup - 1, 1))


def _plateau(optimizer: Optimizer, options: FitOptions) -> ReduceLROnPlateau:
    floors = [g["multiplier"] * options.final_learning_rate for g in optimizer.param_groups]
    return ReduceLROnPlateau(
        optimizer,
        options.monitor_mode,
        factor=options.learning_rate_factor,
        patience=options.plateau_patience,
        min_lr=floors,
    )


def _one_cycle(optimizer: Optimizer, options: FitOptions, length: int) -> OneCycleLR:
    rise = options.warmup_epochs
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=length,
        pct_start=_ONE_CYCLE_RISE if rise is None else rise / options.epochs,
        cycle_momentum=bool({"momentum", "betas"} & set(optimizer.defaults)),
    )
