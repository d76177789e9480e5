"""What a training step of a network costs."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from manystream.memory import peak_bytes
from manystream.models import StreamNetwork
from manystream.streams import StreamBatch
from manystream.tasks import Task

_WARM_UP, _STEPS = 2, 5


@dataclass(frozen=True)
class StepCost:
    """Cost of one forward and backward pass.

    Attributes:
        num_parameters: numbers that are trained.
        peak_bytes: most bytes alive at once beyond those alive before the step; gradients count.
        step_ms: median time of a step in milliseconds.
    """

    num_parameters: int
    peak_bytes: int
    step_ms: float


def measure_step(network: StreamNetwork, task: Task, batch: StreamBatch) -> StepCost:
    """Measure training steps on one batch, on the batch's device; the network stays as it is.

    Args:
        network: the network.
        task: what it is trained on.
        batch: a batch with targets.

    Raises:
        ValueError: if it has none.
    """
    device = batch.streams[0].device
    task.check_target(batch.target, len(batch), batch.ids)
    trained = copy.deepcopy(network).to(device).train()

    def step() -> None:
        trained.zero_grad(set_to_none=True)
        task.loss(trained(batch), batch.target).mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = [_time_ms(step) for _ in range(_WARM_UP + _STEPS)][_WARM_UP:]
    trained.zero_grad(set_to_none=True)
    peak = peak_bytes(step, device)
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return StepCost(parameters, peak, median(times))


def _time_ms(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1000
