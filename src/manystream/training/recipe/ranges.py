"""Checks of options, which name the option, what came and what was expected."""

from __future__ import annotations

from typing import Any


def check_at_least(options: Any, smallest: float, *names: str) -> None:
    """Refuse values below ``smallest``; None is no value.

    Raises:
        ValueError: naming the option.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and not value >= smallest:
            wanted = "0 or more" if smallest == 0 else f"at least {smallest}"
            raise ValueError(f"{name} is {value}; expected {wanted}")


def check_above_zero(options: Any, *names: str) -> None:
    """Refuse values that are not above 0; None is no value.

    Raises:
        ValueError: naming the option.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value}; expected more than 0")


def check_share(options: Any, *names: str) -> None:
    """Refuse values outside of [0, 1); None is no value.

    Raises:
        ValueError: naming the option.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 <= value < 1:
            raise ValueError(f"{name} is {value}; expected [0, 1)")
