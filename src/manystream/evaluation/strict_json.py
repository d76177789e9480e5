"""JSON that every reader takes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def strict_json(values: Any) -> str:
    """Write mappings, lists and plain values as JSON, with null for what is not a finite number.

    Example:
        >>> print(strict_json({"loss": [0.5, float("nan")]}))
        {
         "loss": [
          0.5,
          null
         ]
        }
    """
    return json.dumps(finite(values), indent=1, allow_nan=False)


def finite(values: Any) -> Any:
    """Put None in the place of every number that is not finite."""
    if isinstance(values, Mapping):
        return {key: finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
