"""Every way is measured, and a ratio is to the plain one of the same number of streams."""

import json

import pytest
from benchmarks.evaluation import EVERY, ONE_BY_ONE, PLAIN, main


def test_each_way_is_measured_for_two_and_three_streams(tmp_path, capsys):
    out = tmp_path / "evaluation.json"
    tiny = ["--width", "0.125", "--batch-size", "2", "--image-size", "32", "--batches", "1"]
    main([*tiny, "--rounds", "2", "--device", "cpu", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    found = [(row["num_streams"], row["name"]) for row in rows]
    assert found == [(n, name) for n in (2, 3) for name in (PLAIN, EVERY, ONE_BY_ONE)]
    for row in rows:
        assert row["ratio_least"] <= row["ratio"] <= row["ratio_greatest"]
        assert row["ms"] > 0
        if row["name"] == PLAIN:
            assert row["ratio"] == pytest.approx(1)
    printed = capsys.readouterr().out
    assert EVERY in printed
