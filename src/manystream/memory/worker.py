"""One training step of one network, measured: what a process of the bench does.

As a program (``python -m manystream.memory.worker``) this reads a case as JSON from its input and
prints the result as JSON, so that every case starts with a clean allocator.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from statistics import quantiles
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manystream.memory.case import (
    Case,
    Precision,
    baselines_of,
    blanked_by_chance,
    blanked_in_turn,
)
from manystream.memory.counting import bytes_over_time, peak_bytes
from manystream.memory.measure import kept_by
from manystream.models import StreamResNet

Forward = Callable[[], Tensor]

_WARM_UP = {"cuda": 4, "cpu": 1}
_TIMELINE_SAMPLES = 300


def run_case(case: Case) -> dict[str, Any]:
    """Measure a case in this process.

    Returns:
        Bytes and milliseconds by name; ``activation_peak_bytes``, ``peak_reserved_bytes``
        (CUDA), ``step_ms`` and ``step_spread_ms`` (median, and distance of the quartiles),
        ``kept_bytes``, ``kept_by_layer`` and ``kept_by_kind`` (modes), ``timeline_bytes``; of a
        varying case ``peak_reserved_bytes`` and ``peak_allocated_bytes`` in all.

    Raises:
        ValueError: if the file of baselines has no such name.
        RuntimeError: if the memory does not suffice.
    """
    _set_precision(case.precision)
    torch.manual_seed(0)
    return _vary(_Bench(case)) if case.varying else _measure(_Bench(case))


class _Bench:
    """A network of the case, its optimizer, and noise for its images."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.device = torch.device(case.device)
        self.network = StreamResNet(**case.layout).to(self.device).train()
        self.baseline = _baseline(case, self.network)
        if self.baseline is None:
            self.network.memory = case.name  # type: ignore[assignment]
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-3, momentum=0.9)
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
        enabled = self.case.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            return F.cross_entropy(forward(), self.target)

    def step(self, forward: Forward) -> None:
        self.loss(forward).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)  # Gradients are no activation memory.

    def warm_up(self, forward: Forward) -> None:
        for _ in range(_WARM_UP[self.device.type]):
            self.step(forward)

    def _noise(self, channels: int) -> Tensor:
        images = torch.randn(
            self.case.batch_size, channels, *self.case.image_size, device=self.device
        )
        return images.contiguous(memory_format=torch.channels_last)


def _measure(bench: _Bench) -> dict[str, Any]:
    case = bench.case
    # Generated code neither says what it keeps nor runs operation by operation.
    opaque = getattr(bench.baseline, "generates_code", False)
    if opaque and bench.device.type != "cuda":
        raise RuntimeError("generated code is measured on CUDA only")
    forward, inputs = bench.forward(blanked_in_turn(case))
    if bench.baseline is None:
        bench.images.clear()  # The compact batch is all that a data loader brings.
    step = partial(bench.step, forward)
    bench.warm_up(forward)
    measured: dict[str, Any] = {"activation_peak_bytes": peak_bytes(step, bench.device)}
    measured |= _reserved(bench.device)
    measured |= _timing(step, case.steps, bench.device)
    if not opaque:
        measured |= _kept(bench, forward, inputs)
        if case.timeline:
            both_passes = bytes_over_time(lambda: bench.loss(forward).backward(), bench.device)
            measured["timeline_bytes"] = _thinned(both_passes)
    return measured


def _vary(bench: _Bench) -> dict[str, Any]:
    """Steps in which the streams' row counts change, as modality dropout makes them."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(bench.case.steps):
        forward, _ = bench.forward(blanked_by_chance(bench.case, generator))
        bench.step(forward)
        del forward
    measured = _reserved(bench.device)
    if bench.device.type == "cuda":
        measured["peak_allocated_bytes"] = torch.cuda.max_memory_allocated(bench.device)
    return measured


def _kept(bench: _Bench, forward: Forward, inputs: list[Tensor]) -> dict[str, Any]:
    lives = [*bench.network.parameters(), *bench.network.buffers(), *inputs, bench.target]
    by_layer, by_kind = kept_by(bench.network, partial(bench.loss, forward), lives)
    measured: dict[str, Any] = {"kept_bytes": sum(by_layer.values())}
    if bench.baseline is None:
        measured |= {"kept_by_layer": by_layer, "kept_by_kind": by_kind}
    return measured


def _reserved(device: torch.device) -> dict[str, int]:
    if device.type != "cuda":
        return {}
    return {"peak_reserved_bytes": torch.cuda.max_memory_reserved(device)}


def _timing(step: Callable[[], None], steps: int, device: torch.device) -> dict[str, float]:
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


def _thinned(samples: list[int]) -> list[int]:
    """A few hundred samples that keep the peaks."""
    width = -(-len(samples) // _TIMELINE_SAMPLES)
    return [max(samples[i : i + width]) for i in range(0, len(samples), width)]


def main() -> None:
    """Read a case, measure it, print the result."""
    case = Case(**json.loads(sys.stdin.readline()))
    try:
        result = run_case(case)
    except (RuntimeError, ValueError) as error:
        result = {"error": str(error).splitlines()[0] if str(error) else type(error).__name__}
    sys.stdout.write("\n" + json.dumps(result, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
