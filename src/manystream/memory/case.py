"""What a bench measures: a network, a way to run it, and a batch."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manystream.models import StreamResNet

Precision = Literal["fp32", "tf32", "bf16"]


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        name: a memory mode, or a baseline of the file.
        layout: arguments of :class:`manystream.models.StreamResNet`.
        baselines: Python file whose ``BASELINES`` has the name; None for a memory mode.
        batch_size: samples B.
        image_size: height and width in pixels.
        blanked: share of samples that lack one of their streams, each stream in turn.
        precision: ``"bf16"`` is autocast; ``"tf32"`` is float32 with TF32 products.
        device: where to measure.
        steps: steps to time, or to vary.
        varying: instead of timing one batch, draw who is present anew in every step, and compare
            reserved with allocated memory.
        expandable: whether the allocator uses expandable segments.
        timeline: whether to follow the memory through the step.
    """

    name: str
    layout: dict[str, Any]
    baselines: str | None = None
    batch_size: int = 32
    image_size: tuple[int, int] = (224, 224)
    blanked: float = 0.2
    precision: Precision = "bf16"
    device: str = "cuda"
    steps: int = 20
    varying: bool = False
    expandable: bool = False
    timeline: bool = False

    def to_json(self) -> str:
        """The case on one line."""
        return json.dumps(asdict(self))


def baselines_of(path: str) -> dict[str, Callable[[StreamResNet], nn.Module]]:
    """``BASELINES`` of a Python file.

    Raises:
        ValueError: if the file has none.
    """
    spec = importlib.util.spec_from_file_location("manystream_baselines", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ValueError(f"no Python file at {path}; expected one with BASELINES")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # torch.compile looks modules up by name.
    spec.loader.exec_module(module)
    found = getattr(module, "BASELINES", None)
    if not isinstance(found, dict):
        raise ValueError(f"{path} has no BASELINES; expected a dict of name -> function(network)")
    return found


def blanked_in_turn(case: Case) -> Tensor:
    """Who is present, (B, M): the first samples lose stream 0, 1, … in turn."""
    num_streams = len(case.layout["in_channels"])
    present = torch.ones(case.batch_size, num_streams, dtype=torch.bool)
    touched = torch.arange(round(case.blanked * case.batch_size))
    present[touched, touched % num_streams] = False
    return present


def blanked_by_chance(case: Case, generator: torch.Generator) -> Tensor:
    """Who is present, (B, M): each sample loses one stream with the probability ``blanked``."""
    num_streams = len(case.layout["in_channels"])
    lost = torch.randint(num_streams, (case.batch_size,), generator=generator)
    touched = torch.rand(case.batch_size, generator=generator) < case.blanked
    return ~(F.one_hot(lost, num_streams).bool() & touched[:, None])
