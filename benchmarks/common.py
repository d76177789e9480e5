"""What every benchmark shares: a record of the machine, and strict JSON."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import manystream

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, str]:
    """Versions, device and commit that a result belongs to."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "torch": torch.__version__,
        "manystream": manystream.__version__,
        "commit": commit or "unknown",
    }


def save(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write a benchmark's rows with the environment they were measured in."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"environment": environment(), "rows": rows}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path
