"""Networks on several image streams that survive a missing sensor and train in less memory.

Importing the package loads nothing, not even torch: each public name is loaded when it is first
asked for. ``__init__.pyi`` tells type checkers the same names.
"""

from importlib import import_module
from typing import Any

_ROOM_OF = {
    "GraphedStep": "graphs",
    "ModalityDropout": "dropout",
    "Presence": "presence",
    "StreamBatch": "batch",
    "StreamModel": "model",
    "StreamResNet": "models",
    "create_model": "model",
    "load_model": "model",
}

_ROOMS = (
    "data",
    "evaluation",
    "functional",
    "graphs",
    "layers",
    "memory",
    "models",
    "tasks",
    "training",
)

__all__ = [*_ROOM_OF, *_ROOMS]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name in _ROOM_OF:
        found = getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    elif name == "__version__":
        from importlib.metadata import version

        found = version(__name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
