"""Options that take one of a few values, and names: what is none of them is refused, in words."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

_P = ParamSpec("_P")
_R = TypeVar("_R")


def did_you_mean(given: object, known: Iterable[object]) -> str:
    """End a message about an unknown name with the nearest known one, if one is near.

    Example:
        >>> "no option epohcs" + did_you_mean("epohcs", ["seed", "epochs"])
        'no option epohcs; did you mean epochs?'
    """
    near = get_close_matches(str(given), map(str, known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def first_few(items: Iterable[str], most: int, separator: str = ", ") -> str:
    """List the first items for a message, and say how many more there are.

    Example:
        >>> first_few(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    items = list(items)
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + more


def check_choices(options: Any, prefix: str = "") -> None:
    """Refuse values of a dataclass's fields that are none of the choices in their annotations.

    A field's choices are those of ``Literal``, also as the values of a dict; bool has two. Beside
    other types, as in ``int | Literal["auto"]``, only a string must be one of them.

    Args:
        options: the dataclass.
        prefix: what stands before a field's name in messages.

    Raises:
        ValueError: naming the field, what came, the choices, and the nearest.
    """
    for name, hint in get_type_hints(type(options)).items():
        _check(f"{prefix}{name}", getattr(options, name), hint)


def check_names(given: Iterable[str], known: Iterable[str], function: str) -> None:
    """Refuse keyword arguments that a function passes on to what does not take them.

    Raises:
        TypeError: naming the argument, and the nearest that there is.
    """
    known = list(known)
    for name in given:
        if name not in known:
            raise TypeError(f"{function}() has no option {name!r}{did_you_mean(name, known)}")


def names_checked(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Have a function refuse, as :func:`check_names` does, arguments that it does not take."""
    known = signature(function).parameters

    @wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        check_names(kwargs, known, function.__name__)
        return function(*args, **kwargs)

    return checked


def _check(name: str, value: Any, hint: Any) -> None:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if isinstance(value, Mapping):
        for of_values in (get_args(kind)[1] for kind in kinds if get_origin(kind) is dict):
            for key, inner in value.items():
                _check(f"{name} of {key}", inner, of_values)
        return
    choices = [choice for kind in kinds for choice in _choices(kind)]
    others = [kind for kind in kinds if not _choices(kind)]
    if not choices or (isinstance(value, Hashable) and value in choices):
        return
    if value is None and NoneType in others:
        return
    others = [kind for kind in others if kind is not NoneType]
    if str in others or (others and not isinstance(value, str)):
        return
    expected = [*map(str, choices), *(getattr(kind, "__name__", str(kind)) for kind in others)]
    raise ValueError(
        f"{name} is {value!r}; expected {'one of ' if len(expected) > 1 else ''}"
        f"{', '.join(expected)}{did_you_mean(value, choices)}"
    )


def _choices(kind: Any) -> tuple[Any, ...]:
    if kind is bool:
        return (True, False)
    return get_args(kind) if get_origin(kind) is Literal else ()
