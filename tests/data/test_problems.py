import pytest

from manystream.data.problems import Problem, Problems, is_utf8, printable

SEVEN = [Problem(f"x.csv, line {n}", "its label is empty") for n in range(2, 9)]


def test_the_first_few_are_shown_and_all_are_counted():
    with pytest.raises(ValueError, match=r"rows: 7\n(  x\.csv, line \d: .*\n){5}  … and 2 more\n"):
        Problems().settle("rows", SEVEN, "are left out")


def test_skipped_problems_are_reported_once():
    lines = []
    Problems("skip", lines.append).settle("rows", SEVEN, "are left out")
    assert len(lines) == 1
    assert lines[0].startswith("rows: 7\n  x.csv, line 2: its label is empty\n")
    assert lines[0].endswith("skipped: they are left out")


def test_how_to_go_on_is_said():
    with pytest.raises(ValueError, match="or with on_error: skip they count as absent"):
        Problems().settle("images", SEVEN, "count as absent")


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_no_problem_is_nothing_to_tell(on_error):
    lines = []
    Problems(on_error, lines.append).settle("rows", [], "are left out")
    assert lines == []


def test_names_that_are_no_utf8():
    assert is_utf8("café")
    assert not is_utf8("caf\udce9")
    assert printable("café/caf\udce9") == "café/caf\\xe9"
