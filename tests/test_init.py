"""The names at the package's front."""

import ast
from pathlib import Path

import pytest

import manystream

STUB = Path(manystream.__file__).with_suffix(".pyi")


@pytest.mark.parametrize("name", manystream.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(manystream, name).__name__.rpartition(".")[2] == name
    assert name in dir(manystream)


def test_type_checkers_are_told_the_same_names() -> None:
    told = {
        alias.asname
        for node in ast.parse(STUB.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == set(manystream.__all__)


def test_the_version_is_the_installed_one() -> None:
    assert manystream.__version__.count(".") >= 2


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'create_modle'"):
        _ = manystream.create_modle
