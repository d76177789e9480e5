"""Tables worth preparing, small enough to compare every byte of."""

import numpy as np

from manystream.data.prepared import prepare_split
from manystream.data.survey import look_at, statistics
from manystream.data.table import SampleTable
from tests.data.builders import DEPTH, RGB, table_of

NUM_SAMPLES = 40


def small_table(num_samples: int = NUM_SAMPLES, size: tuple[int, int] = (6, 8)) -> SampleTable:
    """Every fifth sample lacks depth, every seventh colour; three groups, two classes."""
    rng = np.random.default_rng(3)
    samples = []
    for i in range(num_samples):
        color = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        depth = rng.integers(0, 9000, (*size, 1), dtype=np.uint16)
        samples.append([None if i % 7 == 6 else color, None if i % 5 == 4 else depth])
    samples = [row for row in samples if any(image is not None for image in row)]
    groups = [f"room {i % 3}" for i in range(len(samples))]
    return table_of((RGB, DEPTH), samples, [i % 2 for i in range(len(samples))], groups)


def statistics_of(table: SampleTable):
    """Mean and deviation of each stream."""
    return statistics(table, look_at(table))


def write_set(root, table=None, split="train", **arguments):
    """Prepare a table as one split."""
    table = small_table() if table is None else table
    return prepare_split(table, statistics_of(table), root, split, **arguments)


def contents(folder) -> dict[str, bytes]:
    """Every file of a folder, by its name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
