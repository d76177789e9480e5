"""A tiny network, and images of which every stream tells the class, that the tests share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from manystream.model import StreamModel
from manystream.models import StreamResNet
from manystream.tasks import Classification, Task
from manystream.training.history import SAMPLES_PER_SECOND
from tests.builders import with_absent
from tests.data.builders import DEPTH, RGB, ArraySource

STREAMS = {"rgb": 3, "depth": 1}
NUM_CLASSES = 3
CPU = {"accelerator": "cpu", "progress": False}


def tiny_model(
    seed: int = 0, dropout: float = 0.0, task: Task | None = None, **changes: Any
) -> StreamModel:
    """One small basic block a stage."""
    task = task or Classification(changes.pop("num_classes", NUM_CLASSES))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layout = {
            "layers": (1, 1, 1, 1),
            "widths": (4, 8, 8, 8),
            "in_channels": STREAMS,
            "dropout": dropout,
        }
        network = StreamResNet(**{**layout, **changes}, num_classes=task.num_outputs)
        return StreamModel(network, task)


def easy_samples(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images of both streams, brighter by class in one third of their rows, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(count) % NUM_CLASSES
    images = []
    for channels in STREAMS.values():
        noise = torch.randn(count, channels, 32, 32, generator=generator)
        for b, number in enumerate(target.tolist()):
            noise[b, :, 10 * number : 10 * number + 10] += 3
        images.append(noise)
    return images[0], images[1], target


def repeatable(history: dict[str, list[float]]) -> dict[str, list[float]]:
    """What a run has again when it is repeated: all of its history but the time it took."""
    return {name: values for name, values in history.items() if name != SAMPLES_PER_SECOND}


def array_source(count: int) -> ArraySource:
    """Easy samples as images in memory, for a loader of ours."""
    *streams, target = easy_samples(count)
    images = [
        [
            (40 * stream[b] + 80).clamp(0, 255).permute(1, 2, 0).to(torch.uint8).numpy()
            for stream in streams
        ]
        for b in range(count)
    ]
    source = ArraySource((RGB, DEPTH), images)
    source.targets = target
    return source


def tuple_batches(count: int, batch_size: int = 8, seed: int = 0) -> list[tuple[Tensor, ...]]:
    """Easy samples as a list of ``(rgb, depth, target)``."""
    parts = [tensor.split(batch_size) for tensor in easy_samples(count, seed)]
    return list(zip(*parts, strict=True))


def dict_batches(
    batches: Sequence[tuple[Tensor, ...]], present: Tensor, absent: float = float("nan")
) -> list[dict[str, Tensor]]:
    """The same batches by name, each with this presence; what is absent is not to be looked at."""
    named = []
    for *images, target in batches:
        mask = present[: len(images[0])]
        hidden = dict(zip(STREAMS, with_absent(images, mask, absent), strict=True))
        named.append({**hidden, "present": mask, "target": target})
    return named
