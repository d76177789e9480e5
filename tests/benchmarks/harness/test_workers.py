"""Cases in this process and in fresh ones, on the CPU."""

from dataclasses import replace

import pytest
import torch

from harness.cases import Case
from harness.tables import with_ratios
from harness.workers import run_case, run_cases

TINY = Case(
    width=0.0625, batch_size=4, image_size=(32, 32), device="cpu", steps=2, precision="fp32"
)


@pytest.fixture(autouse=True)
def _same_randomness() -> None:
    torch.manual_seed(0)


def test_modes_keep_less_and_less_and_masked_execution_most() -> None:
    names = ("masked in-place", "fast", "balanced", "lean", "min")
    kept = [run_case(replace(TINY, name=name))["kept_bytes"] for name in names]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == len(kept)


def test_blanked_rows_take_less() -> None:
    peaks = [
        run_case(replace(TINY, blanked=share))["activation_peak_bytes"] for share in (0, 0.5, 1)
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == 3


def test_a_process_measures_what_this_one_does_and_errors_are_rows() -> None:
    case = replace(TINY, name="lean", timeline=True)
    broken = replace(TINY, name="masked in-place", family="late_fusion")
    rows = with_ratios(list(run_cases([case, broken])))
    here = run_case(case)
    for key in ("activation_peak_bytes", "kept_bytes", "kept_by_kind", "timeline_bytes"):
        assert rows[0][key] == here[key], key
    assert rows[0]["memory_ratio"] == 1
    assert "no integrated pathway" in rows[1]["error"]


def test_what_does_not_fit_into_the_time_is_said() -> None:
    (row,) = run_cases([TINY], seconds=0)
    assert row["error"] == "no time left"
