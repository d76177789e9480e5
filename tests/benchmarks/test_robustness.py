"""The table of seeds says what the numbers say."""

import io

import torch
from benchmarks.robustness import in_memory, table_of
from rich.console import Console

from manystream.data import DataOptions, training_data


def shown(rows) -> str:
    printed = io.StringIO()
    Console(width=120, file=printed).print(table_of(rows))
    return printed.getvalue()


def test_mean_and_spread_of_the_seeds():
    values = [0.5, 0.6, 0.7]
    rows = [
        {"training": "plain", "seed": seed, "mean_class_accuracy": {"rgb": value, "depth": 0.25}}
        for seed, value in enumerate(values)
    ]
    text = shown(rows)
    assert "60.0% ± 10.0" in text
    assert "25.0% ± 0.0" in text
    assert "3 seeds" in text


def test_samples_held_in_memory_are_those_of_the_loader():
    options = DataOptions(image_size=16, num_scenes=24, augment=False, num_workers=0)
    loader = training_data(options).val
    (held,) = in_memory(loader)
    (batch,) = loader
    for mine, theirs in zip(held[:2], batch.streams, strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(held[2], batch.target)
