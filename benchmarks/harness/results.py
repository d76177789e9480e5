"""Numbers and where they were measured, kept as strict JSON; needs nothing of the package."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(os.path.relpath(Path(__file__).parents[1] / "results"))
"""Folder of the kept results; relative, since results name no machine's folders."""

Row = dict[str, Any]
"""What was measured and its numbers; ``error`` where it could not be."""

_RENAMED = {"floor_ms": "roofline_ms", "floor_bytes": "output_bytes"}


def parser_of(doc: str | None, file: str) -> ArgumentParser:
    """Make a parser with what every benchmark takes.

    Args:
        doc: the script's docstring, its help.
        file: where numbers go by default, in the folder of results.
    """
    parser = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    out = RESULTS / file
    parser.add_argument("--out", type=Path, default=out, help=f"file for the numbers ({out})")
    parser.add_argument("--show", type=Path, metavar="FILE", help="only print a kept file's tables")
    parser.add_argument("--commit", help="commit of what is measured, where git cannot say")
    return parser


def save(path: Path, rows: Sequence[Row], commit: str | None = None) -> None:
    """Write rows and the environment they were measured in.

    Args:
        path: the file.
        rows: the numbers, none of which may be NaN or infinite.
        commit: of the code that was measured, where git cannot say.
    """
    found = environment()
    content = {"environment": {**found, "commit": commit or found["commit"]}, "rows": list(rows)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load(path: Path) -> list[Row]:
    """Read kept rows; what older files call a floor has its name of today."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [{_RENAMED.get(key, key): value for key, value in row.items()} for row in rows]


def environment() -> dict[str, str]:
    """Return versions, device and commit that a result belongs to."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "python": platform.python_version(),
        "manystream": _own_version(),
        "commit": commit_of(Path(__file__).parent),
    }


def device_tag() -> str:
    """Return a word for the device that results are named by, for example ``h200``; or ``cpu``."""
    if not torch.cuda.is_available():
        return "cpu"
    return torch.cuda.get_device_name().removeprefix("NVIDIA ").split()[0].lower()


def commit_of(folder: Path) -> str:
    """Return the commit that is checked out in a folder, or ``unknown``."""
    git = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=False).stdout
    except OSError:  # There is no git.
        return "unknown"
    return found.strip() or "unknown"


def _own_version() -> str:
    try:
        return version("manystream")
    except PackageNotFoundError:  # Run from its source.
        return "unknown"
