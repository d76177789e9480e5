"""Numbers as strict JSON, ratios, and tables of them."""

import io
import json

import pytest
from rich.console import Console

from harness.results import load, save
from harness.tables import label, number, table_of, with_ratios
from harness.timing import in_turns, spread, step_times


def shown(table) -> str:
    printed = io.StringIO()
    Console(width=150, file=printed).print(table)
    return printed.getvalue()


def test_rows_are_kept_with_where_they_were_measured(tmp_path):
    save(tmp_path / "a/b.json", [{"name": "fast"}])
    content = json.loads((tmp_path / "a/b.json").read_text())
    assert {"torch", "device", "commit", "python"} <= content["environment"].keys()
    assert load(tmp_path / "a/b.json") == [{"name": "fast"}]
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path / "c.json", [{"step_ms": float("nan")}])


def test_what_older_files_call_a_floor_is_a_roofline(tmp_path):
    save(tmp_path / "a.json", [{"floor_ms": 1.0}])
    assert load(tmp_path / "a.json") == [{"roofline_ms": 1.0}]


def test_ratios_are_to_the_masked_way_where_there_is_one():
    measured = {"activation_peak_bytes": 2, "step_ms": 4.0}
    rows = [
        {"name": "fast", **measured},
        {"name": "masked in-place", "activation_peak_bytes": 8, "step_ms": 2.0},
        {"name": "min", "error": "no memory"},
    ]
    fast, masked, broken = with_ratios(rows)
    assert (fast["memory_ratio"], fast["time_ratio"], fast["speedup"]) == (0.25, 2, 0.5)
    assert masked["memory_ratio"] == 1
    assert broken == rows[2]
    assert with_ratios(rows[2:]) == rows[2:]
    assert with_ratios([rows[0]])[0]["ratio_to"] == "fast"


def test_a_row_of_nothing_but_an_error_is_shown():
    rows = [{"name": "fast", "step_ms": 4.0, "graphs": True}, {"name": "min", "error": "[a] b"}]
    text = shown(table_of(rows, {"ms": number("step_ms", ".1f"), "MB": number("bytes", "d")}))
    assert label(rows[0]) in text
    assert "4.0" in text
    assert "[a] b" in text


def test_ways_take_turns():
    calls = []
    ways = {name: lambda name=name: calls.append(name) or float(len(calls)) for name in "ab"}
    assert in_turns(ways, 2) == {"a": [1.0, 3.0], "b": [2.0, 4.0]}
    assert calls == list("abab")


def test_times_are_told_by_median_and_spread():
    assert step_times([1, 2, 3, 4, 5]) == {"step_ms": 3, "step_spread_ms": 2}
    assert step_times([7.0]) == {"step_ms": 7.0, "step_spread_ms": 0.0}
    assert spread("ms", [3, 1, 2]) == {"ms": 2, "ms_least": 1, "ms_greatest": 3}
