"""Memory and time of training steps, each case in a process of its own with a clean allocator.

As a program (``python -m harness.workers``) this reads a case as JSON from its input, and prints
what it measured as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.baselines import COMPILED
from harness.cases import Case, blanked_by_chance, blanked_in_turn
from harness.results import Row
from harness.timing import step_times, times_ms
from harness.workload import Loss, Workload
from manystream.memory import peak_bytes
from manystream.memory.counting import bytes_over_time
from manystream.memory.measure import kept_by

_TIMELINE_SAMPLES = 300


def run_cases(cases: Iterable[Case], seconds: float = float("inf")) -> Iterator[Row]:
    """Measure each case in a fresh process, one at a time.

    Args:
        cases: what to measure.
        seconds: time for all; a case that does not fit is reported as such.
    """
    deadline = time.monotonic() + seconds
    todo, started = deque(cases), deque[tuple[Case, subprocess.Popen[str]]]()
    # Loading torch takes longer than most cases: the next processes do so while one measures.
    ready = min(2, (os.cpu_count() or 1) // 8)
    try:
        while todo or started:
            while todo and len(started) <= ready:
                case = todo.popleft()
                started.append((case, _start(case)))
            case, process = started[0]
            measured = _finish(case, process, deadline - time.monotonic())
            started.popleft()
            yield {**asdict(case), **measured}
    finally:
        for _, process in started:
            _stop(process)


def run_case(case: Case) -> dict[str, Any]:
    """Measure a case in this process.

    Returns:
        Bytes and milliseconds by name; ``activation_peak_bytes``, ``peak_reserved_bytes``
        (CUDA), ``step_ms`` and ``step_spread_ms`` (median, and distance of the quartiles),
        ``kept_bytes``, ``kept_by_layer`` and ``kept_by_kind`` (modes), ``timeline_bytes``; of a
        varying case ``peak_reserved_bytes`` and ``peak_allocated_bytes`` in all.

    Raises:
        RuntimeError: if the memory does not suffice.
    """
    return _vary(Workload(case)) if case.varying else _measure(Workload(case))


def _measure(work: Workload) -> dict[str, Any]:
    case = work.case
    loss, inputs = work.loss(blanked_in_turn(case.batch_size, len(case.streams), case.blanked))
    if not case.is_baseline:
        work.images.clear()  # The compact batch is all that a data loader brings.
    step = partial(work.step, loss)
    work.warm_up(loss)
    measured: dict[str, Any] = {"activation_peak_bytes": peak_bytes(step, work.device)}
    measured |= _reserved(work.device)
    measured |= step_times(times_ms(step, case.steps, work.device))
    # Generated code neither says what it keeps nor runs operation by operation.
    if case.name != COMPILED:
        measured |= _kept(work, loss, inputs)
        if case.timeline:
            both_passes = bytes_over_time(lambda: loss().backward(), work.device)
            measured["timeline_bytes"] = _thinned(both_passes)
    return measured


def _vary(work: Workload) -> dict[str, Any]:
    """Take steps in which the streams' row counts change, as modality dropout makes them."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(work.case.steps):
        loss, _ = work.loss(blanked_by_chance(work.case, generator))
        work.step(loss)
        del loss
    measured = _reserved(work.device)
    if work.device.type == "cuda":
        measured["peak_allocated_bytes"] = torch.cuda.max_memory_allocated(work.device)
    return measured


def _kept(work: Workload, loss: Loss, inputs: list[Tensor]) -> dict[str, Any]:
    lives = [*work.network.parameters(), *work.network.buffers(), *inputs]
    by_layer, by_kind = kept_by(work.network, loss, lives)
    measured: dict[str, Any] = {"kept_bytes": sum(by_layer.values())}
    if not work.case.is_baseline:
        measured |= {"kept_by_layer": by_layer, "kept_by_kind": by_kind}
    return measured


def _reserved(device: torch.device) -> dict[str, int]:
    if device.type != "cuda":
        return {}
    return {"peak_reserved_bytes": torch.cuda.max_memory_reserved(device)}


def _thinned(samples: list[int]) -> list[int]:
    """Return a few hundred samples that keep the peaks."""
    width = -(-len(samples) // _TIMELINE_SAMPLES)
    return [max(samples[i : i + width]) for i in range(0, len(samples), width)]


def _start(case: Case) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, (str(_BENCHMARKS), os.environ.get("PYTHONPATH"))))
    changes = {"PYTHONPATH": path}
    if case.expandable:
        changes["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    return subprocess.Popen(
        [sys.executable, "-m", "harness.workers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **changes},
    )


_BENCHMARKS = Path(__file__).resolve().parents[1]


def _finish(case: Case, process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    timeout = None if seconds == float("inf") else max(seconds, 0.0)
    try:
        out, err = process.communicate(json.dumps(asdict(case)) + "\n", timeout=timeout)
    except subprocess.TimeoutExpired:
        _stop(process)
        return {"error": "no time left"}
    if process.returncode != 0 or not out.strip():
        return {"error": (err.strip().splitlines() or [f"status {process.returncode}"])[-1]}
    result: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return result


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    with suppress(BrokenPipeError), process:  # Closes the pipes; what was not read is lost.
        pass


def main() -> None:
    """Read a case, measure it, print the result."""
    case = Case(**json.loads(sys.stdin.readline()))
    try:
        result = run_case(case)
    except (RuntimeError, ValueError) as error:
        result = {"error": str(error).splitlines()[0] if str(error) else type(error).__name__}
    print("\n" + json.dumps(result, allow_nan=False))


if __name__ == "__main__":
    main()
