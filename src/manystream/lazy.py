"""Rooms of the package that load what they offer when it is first asked for."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from manystream.extras import train_extra


class _Room(ModuleType):
    """A package whose public names are loaded one by one."""

    _modules: Mapping[str, str]

    def __getattr__(self, name: str) -> Any:
        if name not in self._modules:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        with train_extra():
            module = import_module(f"{self.__name__}.{self._modules[name]}")
        found = getattr(module, name)
        setattr(self, name, found)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing a submodule binds it to its name in the package; where a public name is the
        # same, that is what the package has.
        if not (isinstance(value, ModuleType) and name in self._modules):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._modules})


def load_when_asked(package: str, modules: Mapping[str, str]) -> None:
    """Have a package load its public names when they are first asked for.

    Its ``__init__.pyi`` tells type checkers the same names. A package that is missing then says
    how to install it.

    Args:
        package: full name of the package, in whose ``__init__`` this is called.
        modules: by public name, the submodule that has it.
    """
    room = sys.modules[package]
    vars(room)["_modules"] = modules
    room.__class__ = _Room
