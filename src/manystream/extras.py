"""What a plain ``pip install manystream`` leaves out, and how to install it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtraError(ModuleNotFoundError):
    """Something needs a package of the extra ``train``, which is not installed."""


@contextmanager
def train_extra() -> Iterator[None]:
    """Have a package that cannot be imported say how to install it.

    Raises:
        MissingExtraError: instead of a plain ModuleNotFoundError.
    """
    try:
        yield
    except MissingExtraError:
        raise
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{error}; training, measuring, data, model files and the command line need more than "
            'the core: pip install "manystream[train]"',
            name=error.name,
            path=error.path,
        ) from error
