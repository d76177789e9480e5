"""Cases in fresh processes, on the CPU."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from manystream.memory.bench import modes_and_baselines, plot, run_cases, save, with_ratios
from manystream.memory.case import Case, baselines_of
from manystream.memory.worker import run_case

BASELINES = Path(__file__).parents[2] / "benchmarks" / "baselines.py"
LAYOUT = {"widths": (4, 4, 4, 4), "layers": (1, 1, 1, 1), "in_channels": [3, 1], "num_classes": 2}
TINY = Case(
    "fast", LAYOUT, batch_size=4, image_size=(32, 32), device="cpu", steps=2, precision="fp32"
)


@pytest.fixture(autouse=True)
def _same_randomness() -> None:
    torch.manual_seed(0)


def test_modes_keep_less_and_less_and_masked_execution_most() -> None:
    names = ("masked in-place", "fast", "balanced", "lean", "min")
    cases = {case.name: case for case in modes_and_baselines(TINY, BASELINES)}
    kept = [run_case(cases[name])["kept_bytes"] for name in names]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == len(kept)


def test_blanked_rows_take_less() -> None:
    peaks = [
        run_case(replace(TINY, blanked=share))["activation_peak_bytes"] for share in (0, 0.5, 1)
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == 3


def test_a_process_measures_what_this_one_does_and_errors_are_rows(tmp_path: Path) -> None:
    case = replace(TINY, name="lean", timeline=True)
    rows = with_ratios(list(run_cases([case, replace(TINY, name="none")])))
    here = run_case(case)
    for key in ("activation_peak_bytes", "kept_bytes", "kept_by_kind", "timeline_bytes"):
        assert rows[0][key] == here[key], key
    assert rows[0]["memory_ratio"] == 1
    assert "none" in rows[1]["error"]
    save(tmp_path / "memory.json", rows)
    plot(tmp_path / "memory.png", rows)
    content = json.loads((tmp_path / "memory.json").read_text())
    assert content["rows"][0]["layout"]["in_channels"] == [3, 1]
    assert {"torch", "device", "commit"} <= content["environment"].keys()
    assert (tmp_path / "memory.png").stat().st_size > 0


def test_what_does_not_fit_into_the_time_is_said() -> None:
    (row,) = run_cases([TINY], seconds=0)
    assert row["error"] == "no time left"


def test_a_file_without_baselines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no Python file"):
        baselines_of(str(tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="no BASELINES"):
        baselines_of(str(tmp_path / "empty.py"))


def test_ratios_are_to_the_masked_way_where_there_is_one() -> None:
    measured = {"activation_peak_bytes": 2, "step_ms": 4.0}
    rows = [
        {"name": "fast", **measured},
        {"name": "masked in-place", "activation_peak_bytes": 8, "step_ms": 2.0},
        {"name": "min", "error": "no memory"},
    ]
    fast, masked, broken = with_ratios(rows)
    assert (fast["memory_ratio"], fast["time_ratio"]) == (0.25, 2)
    assert masked["memory_ratio"] == 1
    assert broken == rows[2]
