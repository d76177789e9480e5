"""Paths written in a manifest: image files below its folder, and nothing else."""

from __future__ import annotations

from pathlib import Path

from manystream.data.image import IMAGE_SUFFIXES
from manystream.data.problems import is_utf8


def checked_file(folder: Path, cell: str) -> str:
    """Follow a manifest's path to the file it names.

    Args:
        folder: the manifest's folder, with links resolved.
        cell: as written, relative to the folder or absolute.

    Returns:
        The file relative to the folder, with links resolved.

    Raises:
        ValueError: if the file is outside the folder, also by ``..`` or a link; or if it is
            missing, no image by its suffix, or its name is no UTF-8.
    """
    if not is_utf8(cell):
        raise ValueError("its name is not UTF-8; save the manifest as UTF-8 and rename the file")
    file = _resolved(folder / cell)
    if not file.is_relative_to(folder):
        raise ValueError(f"it is outside {folder}; expected a file below the manifest's folder")
    if file.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"it is no image; expected a suffix of {', '.join(IMAGE_SUFFIXES)}")
    if not file.is_file():
        raise ValueError(f"there is no file {file}; expected one, or an empty cell if it is absent")
    return file.relative_to(folder).as_posix()


def _resolved(file: Path) -> Path:
    try:
        return file.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # Which of them, changes with Python.
        raise ValueError(f"it leads nowhere: {error}") from error
