"""Packages that load what they offer when it is first asked for."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from importlib import import_module
from types import ModuleType
from typing import Any

from manystream.extras import train_extra


class _Package(ModuleType):
    """A package whose public names are loaded one by one."""

    _modules: Mapping[str, str]
    _rooms: Collection[str]
    _needs_extra: bool

    def __getattr__(self, name: str) -> Any:
        if name in self._rooms:
            return import_module(f"{self.__name__}.{name}")
        if name not in self._modules:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        with train_extra() if self._needs_extra else nullcontext():
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
        return sorted({*super().__dir__(), *self._modules, *self._rooms})


def load_when_asked(
    package: str,
    modules: Mapping[str, str],
    *,
    rooms: Collection[str] = (),
    needs_extra: bool = True,
) -> None:
    """Have a package load its public names when they are first asked for.

    Its ``__init__.pyi`` tells type checkers the same names.

    Args:
        package: full name of the package, in whose ``__init__`` this is called.
        modules: by public name, the submodule that has it.
        rooms: submodules that are public themselves.
        needs_extra: whether the names need the extra ``train``; what is missing then says how to
            install it.
    """
    lazy = sys.modules[package]
    vars(lazy).update(_modules=modules, _rooms=rooms, _needs_extra=needs_extra)
    lazy.__class__ = _Package
