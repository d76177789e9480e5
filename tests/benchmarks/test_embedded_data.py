"""The embedded data set is as easy and as redundant as is said of it."""

import io
from statistics import fmean

import pytest
from benchmarks.embedded_data import NETWORKS, table_of, train_all
from rich.console import Console

from harness.results import RESULTS, load
from manystream.data import DataOptions
from manystream.training import FitOptions


def accuracies(rows, streams: str, left: str) -> list[float]:
    return [row["accuracy"][left] for row in rows if row["streams"] == streams]


def test_the_kept_result_is_what_the_set_was_made_for():
    rows = load(RESULTS / "embedded_data.json")
    assert {row["seed"] for row in rows if row["family"] == "li_net3"} == {0, 1, 2}
    for sensor in ("rgb", "depth"):
        assert len(accuracies(rows, sensor, sensor)) == 3
        assert 0.85 <= fmean(accuracies(rows, sensor, sensor)) <= 0.95
    assert fmean(accuracies(rows, "rgb + depth", "rgb + depth")) >= 0.97


def test_a_small_run():
    data = DataOptions(image_size=16, num_scenes=64, augment=False, num_workers=0)
    fit = FitOptions(epochs=1, accelerator="cpu", progress=False)
    rows = list(train_all([0], data, fit))
    assert [(row["streams"], list(row["accuracy"])) for row in rows] == [
        ("rgb", ["rgb"]),
        ("depth", ["depth"]),
        ("rgb + depth", ["rgb + depth", "rgb", "depth"]),
    ]
    assert [row["family"] for row in rows] == list(NETWORKS.values())


@pytest.mark.parametrize(
    ("values", "shown"), [([0.9, 0.92], "91.0% ± 1.4"), ([0.9], "90.0% ± 0.0")]
)
def test_mean_and_spread_of_the_seeds(values, shown):
    rows = [
        {"streams": "rgb", "seed": seed, "accuracy": {"rgb": value}}
        for seed, value in enumerate(values)
    ]
    printed = io.StringIO()
    Console(width=120, file=printed).print(table_of(rows))
    assert shown in printed.getvalue()
