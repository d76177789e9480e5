"""The table of seeds says what the numbers say."""

import io
from statistics import fmean

import torch
from benchmarks.robustness import WAYS, in_memory, table_of, train, verdicts
from rich.console import Console

from benchmarks import robustness
from harness.results import RESULTS, load
from manystream.data import DataOptions, training_data


def rows_of(accuracy):
    """Rows of three seeds, by way and what is left."""
    return [
        {"way": way, "seed": seed, "num_samples": 40, "accuracy": left}
        for way, of_seeds in accuracy.items()
        for seed, left in enumerate(of_seeds)
    ]


def test_mean_and_spread_of_the_seeds():
    printed = io.StringIO()
    values = [{"rgb": value, "depth": 0.25} for value in (0.5, 0.6, 0.7)]
    Console(width=120, file=printed).print(table_of(rows_of({"careless": values})))
    text = " ".join(printed.getvalue().split())
    assert "60.0% ± 10.0" in text
    assert "25.0% ± 0.0" in text
    assert "40 scenes, mean ± spread of 3 seeds" in text


def test_what_is_kept_is_a_share_of_the_dedicated_network_of_that_seed():
    rows = rows_of(
        {"every subset": [{"rgb": 0.4}, {"rgb": 0.9}], "rgb alone": [{"rgb": 0.8}, {"rgb": 0.9}]}
    )
    (line,) = verdicts(rows)
    assert line.startswith("every subset, rgb left: 75.0% of")
    assert "50.0% with the worst of 2 seeds" in line


def test_the_embedded_scenes_are_as_redundant_as_is_said_of_them():
    """Either sensor alone is enough for 85 to 95% of the scenes, and both for 97% or more."""
    rows = load(RESULTS / "robustness.json")
    for way, sensor, low, high in (
        ("rgb alone", "rgb", 0.85, 0.95),
        ("depth alone", "depth", 0.85, 0.95),
        ("careless", "rgb + depth", 0.97, 1.0),
    ):
        found = [row["accuracy"][sensor] for row in rows if row["way"] == way]
        assert len(found) == 5
        assert low <= fmean(found) <= high


def test_every_way_is_trained_and_measured_with_what_it_has(monkeypatch):
    small = DataOptions(image_size=16, num_scenes=64, augment=False, num_workers=0)
    monkeypatch.setattr(robustness, "DATA", small)
    monkeypatch.setattr(robustness, "WIDTH", 0.05)
    robustness._data.cache_clear()
    for name, way in WAYS.items():
        row = train(name, 0, 1)
        alone = len(way.streams) == 1
        assert set(row["accuracy"]) == (
            {way.streams[0]} if alone else {"rgb + depth", "rgb", "depth"}
        )
        assert row["fit"]["epochs"] == 1
    robustness._data.cache_clear()


def test_samples_held_in_memory_are_those_of_the_loader():
    options = DataOptions(image_size=16, num_scenes=24, augment=False, num_workers=0)
    loader = training_data(options).val
    (held,) = in_memory(loader)
    (batch,) = loader
    for mine, theirs in zip(held[:2], batch.streams, strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(held[2], batch.target)
