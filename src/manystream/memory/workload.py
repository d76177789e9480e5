"""What the benches measure: a network of a case, a way to run it, and training steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import quantiles

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manystream.graphs import GraphedStep
from manystream.memory.case import Case, Precision, baselines_of
from manystream.models import StreamResNet

Forward = Callable[[], Tensor]

_WARM_UP = {"cuda": 4, "cpu": 1}


class Workload:
    """A network of a case, its optimizer, and noise for its images: what a bench measures."""

    def __init__(self, case: Case) -> None:
        _set_precision(case.precision)
        torch.manual_seed(0)
        self.case = case
        self.device = torch.device(case.device)
        self.network = StreamResNet(**case.layout).to(self.device).train()
        self.baseline = _baseline(case, self.network)
        if self.baseline is None:
            self.network.memory = case.name  # type: ignore[assignment]
        parameters = self.network.parameters()
        self.optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, fused=True)
        self.images = [self._noise(c) for c in self.network.in_channels.values()]
        classes = torch.arange(case.batch_size) % self.network.num_classes
        self.target = classes.to(self.device)

    def forward(self, mask: Tensor) -> tuple[Forward, list[Tensor]]:
        """How to get logits of a batch in which a mask says who is present, and its tensors."""
        if self.baseline is not None:
            present = mask.to(self.device)
            return partial(self.baseline, self.images, present), [*self.images, present]
        batch = self.network.to_batch(self.images, mask)
        return partial(self.network, batch), list(batch.streams)

    def loss(self, forward: Forward) -> Tensor:
        """Loss of what ``forward`` gives."""
        with self._autocast():
            return F.cross_entropy(forward(), self.target)

    def graphed(self, mask: Tensor) -> Callable[[], Tensor]:
        """How to get the loss of such a batch from CUDA graphs."""
        batch = replace(self.network.to_batch(self.images, mask), target=self.target)
        step = GraphedStep(self.network, F.cross_entropy)

        def loss() -> Tensor:
            with self._autocast():
                return step(batch)[0]

        return loss

    def step(self, loss: Callable[[], Tensor], *, free_gradients: bool = False) -> None:
        """One training step; gradients that stay count as no activation memory."""
        loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=free_gradients)

    def warm_up(self, loss: Callable[[], Tensor]) -> None:
        """Let libraries choose their algorithms."""
        for _ in range(_WARM_UP[self.device.type]):
            self.step(loss)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.case.precision == "bf16"
        )

    def _noise(self, channels: int) -> Tensor:
        images = torch.randn(
            self.case.batch_size, channels, *self.case.image_size, device=self.device
        )
        return images.contiguous(memory_format=torch.channels_last)


def step_times(step: Callable[[], None], steps: int, device: torch.device) -> dict[str, float]:
    """``step_ms`` and ``step_spread_ms``: median, and distance of the quartiles."""
    times = _cuda_times_ms(step, steps) if device.type == "cuda" else _times_ms(step, steps)
    first, median, third = quantiles(times, n=4, method="inclusive") if steps > 1 else times * 3
    return {"step_ms": median, "step_spread_ms": third - first}


def _cuda_times_ms(step: Callable[[], None], steps: int) -> list[float]:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    torch.cuda.synchronize()
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairwise(marks)]


def _times_ms(step: Callable[[], None], steps: int) -> list[float]:
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1000)
    return times


def _baseline(case: Case, network: StreamResNet) -> nn.Module | None:
    if case.baselines is None:
        return None
    found = baselines_of(case.baselines)
    if case.name not in found:
        raise ValueError(f"{case.baselines} has no {case.name!r}; expected one of {list(found)}")
    return found[case.name](network)


def _set_precision(precision: Precision) -> None:
    allowed = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
