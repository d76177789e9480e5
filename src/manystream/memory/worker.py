"""One training step of one network, measured: what a process of the bench does.

As a program (``python -m manystream.memory.worker``) this reads a case as JSON from its input and
prints the result as JSON, so that every case starts with a clean allocator.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor

from manystream.memory.case import Case, blanked_by_chance, blanked_in_turn
from manystream.memory.counting import bytes_over_time, peak_bytes
from manystream.memory.measure import kept_by
from manystream.memory.workload import Forward, Workload, step_times

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
    return _vary(Workload(case)) if case.varying else _measure(Workload(case))


def _measure(bench: Workload) -> dict[str, Any]:
    case = bench.case
    # Generated code neither says what it keeps nor runs operation by operation.
    opaque = getattr(bench.baseline, "generates_code", False)
    if opaque and bench.device.type != "cuda":
        raise RuntimeError("generated code is measured on CUDA only")
    forward, inputs = bench.forward(blanked_in_turn(case))
    if bench.baseline is None:
        bench.images.clear()  # The compact batch is all that a data loader brings.
    loss = partial(bench.loss, forward)
    step = partial(bench.step, loss)
    bench.warm_up(loss)
    measured: dict[str, Any] = {"activation_peak_bytes": peak_bytes(step, bench.device)}
    measured |= _reserved(bench.device)
    measured |= step_times(step, case.steps, bench.device)
    if not opaque:
        measured |= _kept(bench, forward, inputs)
        if case.timeline:
            both_passes = bytes_over_time(lambda: loss().backward(), bench.device)
            measured["timeline_bytes"] = _thinned(both_passes)
    return measured


def _vary(bench: Workload) -> dict[str, Any]:
    """Steps in which the streams' row counts change, as modality dropout makes them."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(bench.case.steps):
        forward, _ = bench.forward(blanked_by_chance(bench.case, generator))
        bench.step(partial(bench.loss, forward))
        del forward
    measured = _reserved(bench.device)
    if bench.device.type == "cuda":
        measured["peak_allocated_bytes"] = torch.cuda.max_memory_allocated(bench.device)
    return measured


def _kept(bench: Workload, forward: Forward, inputs: list[Tensor]) -> dict[str, Any]:
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
