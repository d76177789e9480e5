"""Memory modes and baselines side by side: one process per case, a table, JSON and a plot."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

import torch
from rich.table import Table

from manystream.memory.case import Case, baselines_of
from manystream.models.memory_modes import MemoryMode

Row = dict[str, Any]
"""A case and what was measured of it; ``error`` where it could not be."""

REFERENCE = "masked in-place"
"""The baseline that ratios are against; the first row where there is none."""


def modes_and_baselines(case: Case, baselines: Path | None) -> list[Case]:
    """The case once for every baseline of a file, then once for every memory mode."""
    modes = [replace(case, name=mode, baselines=None) for mode in get_args(MemoryMode)]
    if baselines is None:
        return modes
    path = str(baselines)
    return [replace(case, name=name, baselines=path) for name in baselines_of(path)] + modes


def run_cases(cases: Iterable[Case], seconds: float = float("inf")) -> Iterator[Row]:
    """Measure each case in a fresh process, one at a time.

    Args:
        cases: what to measure.
        seconds: time for all; a case that does not fit is reported as such.
    """
    deadline = time.monotonic() + seconds
    todo, started = deque(cases), deque[tuple[Case, subprocess.Popen[str]]]()
    # Loading torch takes longer than most cases: the next processes do so while one measures.
    ahead = min(2, (os.cpu_count() or 1) // 8)
    try:
        while todo or started:
            while todo and len(started) <= ahead:
                case = todo.popleft()
                started.append((case, _start(case)))
            case, process = started[0]
            measured = _finish(case, process, deadline - time.monotonic())
            started.popleft()
            yield {**asdict(case), **measured}
    finally:
        for _, process in started:
            _stop(process)


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """Add the ratios of memory and time to the reference among the rows."""
    good = [row for row in rows if "activation_peak_bytes" in row]
    reference = next((row for row in good if row["name"] == REFERENCE), good[0] if good else {})
    return [
        {
            **row,
            "ratio_to": reference["name"],
            "memory_ratio": row["activation_peak_bytes"] / reference["activation_peak_bytes"],
            "time_ratio": row["step_ms"] / reference["step_ms"],
        }
        if row in good
        else row
        for row in rows
    ]


def table_of(rows: Sequence[Row], title: str | None = None) -> Table:
    """Rows with ratios, for a terminal."""
    to = next((row["ratio_to"] for row in rows if "ratio_to" in row), "")
    table = Table(title=title, caption=f"ratios to: {to}")
    for column in ("", "activations, MB", "ratio", "kept, MB", "reserved, MB", "step, ms", "ratio"):
        table.add_column(column, justify="left" if column == "" else "right")
    for row in rows:
        table.add_row(row["name"], *_cells(row))
    return table


def save(path: Path, rows: Sequence[Row], **environment_changes: str) -> None:
    """Write rows and the environment they were measured in as strict JSON."""
    content = {"environment": {**environment(), **environment_changes}, "rows": list(rows)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def plot(path: Path, rows: Sequence[Row], title: str = "memory over a training step") -> None:
    """Draw the memory of each row over its step as a PNG."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(9, 5), layout="constrained")).subplots()
    for row in rows:
        samples = row.get("timeline_bytes", [])
        shares = [(i + 1) / len(samples) for i in range(len(samples))]
        style = "-" if row["baselines"] is None else "--"
        if samples:
            axes.plot(shares, [s / 1e6 for s in samples], style, label=row["name"])
    axes.set(title=title, xlabel="share of the step's operations", ylabel="allocated, MB")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def environment() -> dict[str, str]:
    """Versions, device and commit that a result belongs to."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "python": platform.python_version(),
        "manystream": _own_version(),
        "commit": _commit(),
    }


def _start(case: Case) -> subprocess.Popen[str]:
    changes = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} if case.expandable else {}
    return subprocess.Popen(
        [sys.executable, "-m", "manystream.memory.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **changes},
    )


def _finish(case: Case, process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    timeout = None if seconds == float("inf") else max(seconds, 0.0)
    try:
        out, err = process.communicate(case.to_json() + "\n", timeout=timeout)
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


def _cells(row: Row) -> list[str]:
    if "error" in row:
        return [str(row["error"])[:40]]
    step = f"{row['step_ms']:.1f} ± {row['step_spread_ms'] / 2:.1f}"
    return [
        _mb(row["activation_peak_bytes"]),
        f"{row['memory_ratio']:.3f}",
        _mb(row.get("kept_bytes")),
        _mb(row.get("peak_reserved_bytes")),
        step,
        f"{row['time_ratio']:.2f}",
    ]


def _mb(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.1f}"


def _own_version() -> str:
    try:
        return version("manystream")
    except PackageNotFoundError:  # Run from its source.
        return "unknown"


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=False).stdout
    except OSError:  # There is no git.
        return "unknown"
    return found.strip() or "unknown"
