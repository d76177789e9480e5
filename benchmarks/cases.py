"""The networks and batches that the benchmarks measure."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from manystream.memory.case import Case
from manystream.models import StreamResNet, resnet_size

HERE = Path(os.path.relpath(Path(__file__).parent))  # results name no machine
BASELINES = HERE / "baselines.py"
TWO, THREE = {"rgb": 3, "depth": 1}, {"rgb": 3, "depth": 1, "infrared": 1}


def case_of(depth: int, streams: dict[str, int], small: bool) -> Case:
    """A ResNet at batch 32 on a GPU, or a tiny one on the CPU."""
    with torch.device("meta"):
        size = resnet_size(depth, 0.125 if small else 1.0)
        network = StreamResNet(**size, in_channels=streams, num_classes=19)
    case = Case("fast", layout=network.layout)
    if not small:
        return case
    return replace(case, batch_size=4, image_size=(64, 64), device="cpu", steps=2)


def wider(case: Case) -> Case:
    """Half as many images, of 416×544 pixels or a fraction of that."""
    tiny = case.image_size[0] < 224
    size = (52, 68) if tiny else (416, 544)
    return replace(case, batch_size=case.batch_size // 2, image_size=size)
