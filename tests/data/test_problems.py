import pytest

from manystream.data.problems import Problem, is_utf8, printable, refuse, settling

SEVEN = [Problem(f"x.csv, line {n}", "its label is empty") for n in range(2, 9)]


def test_the_first_few_are_shown_and_all_are_counted():
    with pytest.raises(ValueError, match=r"rows: 7\n(  x\.csv, line \d: .*\n){5}  … and 2 more\n"):
        settling("rows", "raise", print, skipped="are left out")(SEVEN)


def test_skipped_problems_are_reported_once():
    lines = []
    settling("rows", "skip", lines.append, skipped="are left out")(SEVEN)
    assert len(lines) == 1
    assert lines[0].startswith("rows: 7\n  x.csv, line 2: its label is empty\n")
    assert lines[0].endswith("skipped: they are left out")


def test_the_option_is_named():
    with pytest.raises(ValueError, match="or with --on-error skip they count as absent"):
        settling("images", "raise", print, skipped="count as absent", option="--on-error")(SEVEN)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_no_problem_is_nothing_to_tell(on_error):
    lines = []
    settling("rows", on_error, lines.append, skipped="are left out")([])
    refuse([])
    assert lines == []


def test_without_a_choice_any_problem_is_refused():
    with pytest.raises(ValueError, match="problems in the data: 1"):
        refuse(SEVEN[:1])


def test_names_that_are_no_utf8():
    assert is_utf8("café")
    assert not is_utf8("caf\udce9")
    assert printable("café/caf\udce9") == "café/caf\\xe9"
