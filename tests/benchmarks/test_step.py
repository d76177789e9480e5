"""Steps side by side on the CPU."""

import pytest
from benchmarks.step import all_of, kinds_table, measure, published

from harness.cases import Case
from harness.tables import with_ratios

TINY = Case(width=0.0625, batch_size=3, image_size=(32, 32), device="cpu", steps=3)


@pytest.fixture(scope="module")
def rows():
    broken = Case("masked in-place", family="late_fusion", width=0.0625, device="cpu")
    masked = [case for case in all_of(TINY) if case.name == "masked in-place"]
    return with_ratios(list(measure([*masked, TINY, broken])))


def test_ratios_are_against_masked_execution(rows):
    masked, fast, _ = rows
    assert masked["speedup"] == 1
    assert fast["speedup"] == pytest.approx(masked["step_ms"] / fast["step_ms"])
    assert fast["ratio_to"] == "masked in-place"


def test_a_mode_stands_beside_its_roofline(rows):
    masked, fast, _ = rows
    assert "roofline_ms" not in masked
    assert 0 < fast["roofline_ms"] < fast["step_ms"]
    assert fast["flops"] > 0


def test_what_cannot_be_measured_is_said(rows):
    assert "no integrated pathway" in rows[2]["error"]
    assert kinds_table(rows) is None


def test_graphs_are_measured_where_there_is_a_gpu():
    on_gpu = published(Case(device="cuda"))
    assert [c.name for c in on_gpu["ResNet-18 B32"] if c.graphs] == ["fast", "balanced", "lean"]
    others = on_gpu["ResNet-18 B32, tf32"]
    assert [(c.name, c.graphs) for c in others][:2] == [("masked in-place", False), ("fast", True)]
    on_cpu = published(Case(device="cpu"))
    assert not any(case.graphs for cases in on_cpu.values() for case in cases)
    assert [len(cases) for cases in on_cpu.values()] == [5, 5, 5, 4, 4, 4, 4]
