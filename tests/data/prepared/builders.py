"""Sources worth preparing, small enough to compare every byte of."""

import numpy as np
import torch

from manystream.data.prepared import prepare_split
from manystream.data.survey import survey
from tests.data.builders import DEPTH, RGB, ArraySource

NUM_SAMPLES = 40


def small_source(num_samples: int = NUM_SAMPLES, size: tuple[int, int] = (6, 8)) -> ArraySource:
    """Every fifth sample lacks depth, every seventh colour; three groups, two classes."""
    rng = np.random.default_rng(3)
    samples = []
    for i in range(num_samples):
        color = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        depth = rng.integers(0, 9000, (*size, 1), dtype=np.uint16)
        samples.append([None if i % 7 == 6 else color, None if i % 5 == 4 else depth])
    samples = [row for row in samples if any(image is not None for image in row)]
    source = ArraySource((RGB, DEPTH), samples)
    source.targets = torch.arange(len(samples)) % 2
    source.groups = [f"room {i % 3}" for i in range(len(samples))]
    return source


def prepared(root, source=None, split="train", **arguments):
    """Prepare a source as one split."""
    source = small_source() if source is None else source
    return prepare_split(source, survey(source).statistics, root, split, **arguments)


def contents(folder) -> dict[str, bytes]:
    """Every file of a folder, by its name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
