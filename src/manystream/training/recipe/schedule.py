"""How the learning rate moves over a run."""

# Annotations are not postponed: the command line reads these fields from another module.
import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, OneCycleLR, ReduceLROnPlateau

from manystream.choices import check_choices
from manystream.training.recipe.ranges import check_at_least

LearningRateSchedule = Literal["cosine", "step", "one_cycle", "plateau", "constant"]

_ONE_CYCLE_RISE = 0.3
"""Share of a one-cycle run in which the learning rate rises, unless a warm-up is given."""


@dataclass
class ScheduleOptions:
    """How long a run is, and how its learning rate moves.

    Raises:
        ValueError: if a number is out of its range, or a value is none of its choices.
    """

    epochs: int = 30
    """Passes over the training data."""
    schedule: LearningRateSchedule = "cosine"
    """What follows a linear warm-up: cosine falls to final_learning_rate; step multiplies by
    learning_rate_factor at step_epochs; plateau does so when monitor has not improved for
    plateau_patience epochs; constant stays. one_cycle rises and falls over the whole run, and the
    momentum falls and rises."""
    warmup_epochs: float | None = None
    """Length of the warm-up in epochs; 1 by default, and 30% of a one_cycle run."""
    final_learning_rate: float = 0.0
    """Where cosine ends, and the least that plateau goes down to."""
    step_epochs: int | list[int] = 10
    """Epochs at which step acts, for example [30,60,80]; or one number, every so many epochs."""
    learning_rate_factor: float = 0.1
    """What step and plateau multiply the learning rate by."""
    plateau_patience: int = 5
    """Epochs without improvement that plateau lets pass."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_at_least(self, 1, "epochs")
        check_at_least(self, 0, "warmup_epochs", "final_learning_rate", "plateau_patience")
        if not 0 < self.learning_rate_factor < 1:
            raise ValueError(
                f"learning_rate_factor is {self.learning_rate_factor}; expected between 0 and 1"
            )
        every = self.step_epochs if isinstance(self.step_epochs, list) else [self.step_epochs]
        if not every or min(every) < 1 or sorted(set(every)) != every:
            raise ValueError(
                f"step_epochs is {self.step_epochs}; expected a number of epochs from 1, or rising "
                "ones"
            )
        if self.schedule == "one_cycle" and (self.warmup_epochs or 0) >= self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}; a one_cycle run of {self.epochs} epochs "
                "rises for less than that"
            )


def make_schedules(
    optimizer: Optimizer,
    options: ScheduleOptions,
    peak: float,
    num_steps: int | None,
    monitor: str,
    mode: Literal["min", "max"],
) -> list[dict[str, Any]]:
    """Learning rate schedules of a run, in Lightning's form.

    Args:
        optimizer: whose groups have the peak learning rates.
        options: which schedule.
        peak: learning rate of a group with multiplier 1; other groups move in proportion.
        num_steps: optimizer steps of the whole run; None if nobody knows, then schedules move by
            epoch.
        monitor: logged value that plateau looks at.
        mode: whether the least or the most of it is best.
    """
    length = options.epochs if num_steps is None else num_steps
    interval = "epoch" if num_steps is None else "step"
    warmup_epochs = 1.0 if options.warmup_epochs is None else options.warmup_epochs
    num_warmup = min(round(length * warmup_epochs / options.epochs), length)
    if options.schedule == "plateau":
        warmup = {"scheduler": _linear_warmup(optimizer, num_warmup), "interval": interval}
        plateau = _plateau(optimizer, options, mode)
        return [warmup, {"scheduler": plateau, "interval": "epoch", "monitor": monitor}]
    if options.schedule == "one_cycle":
        return [{"scheduler": _one_cycle(optimizer, options, length), "interval": interval}]
    share = _share(options, peak, length, num_warmup)
    return [{"scheduler": LambdaLR(optimizer, share), "interval": interval}]


def warmup_cosine(step: int, num_warmup: int, num_steps: int, final: float = 0.0) -> float:
    """Share of the peak learning rate at a step, from a linear warm-up down to ``final``.

    Example:
        >>> [round(warmup_cosine(s, 2, 6), 2) for s in range(7)]
        [0.5, 1.0, 1.0, 0.85, 0.5, 0.15, 0.0]
    """
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / max(num_steps - num_warmup, 1)
    return final + (1 - final) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def warmup_steps(step: int, num_warmup: int, milestones: list[float], factor: float) -> float:
    """Share of the peak learning rate at a step: a linear warm-up, then a factor per milestone.

    Example:
        >>> [warmup_steps(s, 2, [3, 5], 0.5) for s in range(6)]
        [0.5, 1.0, 1.0, 0.5, 0.5, 0.25]
    """
    reached = factor ** bisect_right(milestones, step)
    return reached * min((step + 1) / num_warmup, 1.0) if num_warmup else reached


def _share(
    options: ScheduleOptions, peak: float, length: int, num_warmup: int
) -> Callable[[int], float]:
    if options.schedule == "cosine":
        final = options.final_learning_rate / peak
        return lambda step: warmup_cosine(step, num_warmup, length, final)
    milestones = _milestones(options, length) if options.schedule == "step" else []
    return lambda step: warmup_steps(step, num_warmup, milestones, options.learning_rate_factor)


def _milestones(options: ScheduleOptions, length: int) -> list[float]:
    """Steps at which the learning rate falls."""
    every = options.step_epochs
    epochs = every if isinstance(every, list) else range(every, options.epochs, every)
    return [epoch * length / options.epochs for epoch in epochs]


def _linear_warmup(optimizer: Optimizer, num_warmup: int) -> LinearLR:
    # A recursion in the present learning rate, so that it goes together with plateau.
    start = 1 / max(num_warmup, 1)
    return LinearLR(optimizer, start_factor=start, total_iters=max(num_warmup - 1, 1))


def _plateau(
    optimizer: Optimizer, options: ScheduleOptions, mode: Literal["min", "max"]
) -> ReduceLROnPlateau:
    floors = [g["multiplier"] * options.final_learning_rate for g in optimizer.param_groups]
    return ReduceLROnPlateau(
        optimizer,
        mode,
        factor=options.learning_rate_factor,
        patience=options.plateau_patience,
        min_lr=floors,
    )


def _one_cycle(optimizer: Optimizer, options: ScheduleOptions, length: int) -> OneCycleLR:
    rise = options.warmup_epochs
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=length,
        pct_start=_ONE_CYCLE_RISE if rise is None else rise / options.epochs,
        cycle_momentum=bool({"momentum", "betas"} & set(optimizer.defaults)),
    )
