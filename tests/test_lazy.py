"""Rooms whose names are loaded when they are first asked for."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOMS = ("manystream.data", "manystream.evaluation", "manystream.training")


@pytest.mark.parametrize("name", ROOMS)
def test_every_name_is_there_and_told_to_type_checkers(name):
    room = import_module(name)
    told = Path(room.__file__).with_suffix(".pyi").read_text(encoding="utf-8").splitlines()
    assert sorted(line.rpartition(" as ")[2] for line in told) == sorted(room.__all__)
    assert set(room.__all__) <= set(dir(room))
    for public in room.__all__:
        assert not isinstance(getattr(room, public), ModuleType)


@pytest.mark.parametrize("name", ROOMS)
def test_a_name_that_there_is_not(name):
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'fti'"):
        import_module(name).fti  # noqa: B018


@pytest.mark.parametrize(
    ("room", "name"), [("training", "fit"), ("data", "loader"), ("data", "scenes")]
)
def test_a_function_is_not_hidden_by_the_module_it_is_named_as(room, name):
    """Whichever of the two is loaded first."""
    script = (
        f"import manystream.{room}.{name}, manystream.{room} as room; room.{name}.__code__; "
        f"from manystream.{room} import {name}; assert {name} is room.{name}"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
