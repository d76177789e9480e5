"""The few kinds of variables that we need of MATLAB files, of any version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import h5py

Value = TypeVar("Value")


def read_strings(path: Path, name: str) -> list[str]:
    """Read a cell array of strings.

    Args:
        path: a file of version 5 to 7.3.
        name: of the variable.

    Raises:
        ValueError: if the file is damaged or has no such variable.
    """
    return _read(path, name, _strings_of_v5, _strings_of_hdf5)


def read_numbers(path: Path, name: str) -> np.ndarray:
    """Read an array of whole numbers as a vector, int64.

    Args:
        path: a file of version 5 to 7.3.
        name: of the variable.

    Raises:
        ValueError: if the file is damaged or has no such variable.
    """
    return _read(path, name, _numbers, lambda file, name: _numbers(file[name][()]))


def array_shapes(path: Path, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of arrays in a file of version 7.3, as HDF5 has them: MATLAB's, reversed.

    Raises:
        ValueError: if the file is damaged or has no such variable.
    """
    return {name: _read_hdf5(path, name, lambda file, name: file[name].shape) for name in names}


def _read(
    path: Path,
    name: str,
    of_v5: Callable[[Any], Value],
    of_hdf5: Callable[[h5py.File, str], Value],
) -> Value:
    import h5py  # Only those who have such files need it.

    if h5py.is_hdf5(path):
        return _read_hdf5(path, name, of_hdf5)
    try:
        return of_v5(_load_v5(path, name))
    except Exception as error:  # Damaged files make SciPy raise a dozen different kinds.
        raise _unreadable(path, name, error) from error


def _read_hdf5(path: Path, name: str, read: Callable[[h5py.File, str], Value]) -> Value:
    import h5py  # Only those who have such files need it.

    try:
        with h5py.File(path, "r") as file:
            return read(file, name)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise _unreadable(path, name, error) from error


def _load_v5(path: Path, name: str) -> Any:
    from scipy.io import loadmat  # Only those who have such files need it.

    return loadmat(path, variable_names=[name])[name]


def _strings_of_v5(cells: Any) -> list[str]:
    return ["".join(map(str, np.ravel(cell))) for cell in np.ravel(cells)]


def _strings_of_hdf5(file: h5py.File, name: str) -> list[str]:
    # A cell array is an array of references to arrays of UTF-16 codes.
    return [_text(file[reference][()]) for reference in np.ravel(file[name][()])]


def _numbers(values: Any) -> np.ndarray:
    numbers = np.ravel(np.asarray(values))
    whole = numbers.astype(np.int64)
    if not np.array_equal(whole, numbers):
        raise ValueError("it holds values that are not whole numbers")
    return whole


def _text(codes: np.ndarray) -> str:
    return np.ravel(codes).astype("<u2").tobytes().decode("utf-16-le")


def _unreadable(path: Path, name: str, error: Exception) -> ValueError:
    reason = f"no variable {name!r}" if isinstance(error, KeyError) else str(error)
    return ValueError(f"cannot read {name!r} of the MATLAB file {path}: {reason}; get it again")
