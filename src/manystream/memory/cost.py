"""What a training step of a network costs."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from statistics import median

import torch

from manystream.batch import StreamBatch
from manystream.memory.counting import peak_bytes
from manystream.models import StreamNetwork
from manystream.tasks import StepLoss, Task, forward_and_loss

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
        batch: a batch with targets, seen with the subsets of its streams that training sees it
            with.

    Raises:
        ValueError: if it has none.
    """
    device = batch.streams[0].device
    task.check_target(batch.target, len(batch), batch.ids)
    trained, loss = copy.deepcopy(network).to(device).train(), StepLoss(task.loss)

    def step() -> float:
        trained.zero_grad(set_to_none=True)
        start = time.perf_counter()
        forward_and_loss(trained, loss, batch)[0].backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) * 1000

    times = [step() for _ in range(_WARM_UP + _STEPS)][_WARM_UP:]
    trained.zero_grad(set_to_none=True)
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return StepCost(parameters, peak_bytes(step, device), median(times))
