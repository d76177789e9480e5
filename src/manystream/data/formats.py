"""The kinds of data sets that can stand at ``--data.root``: how to know and how to open each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from manystream.data.options import Format
from manystream.data.prepared import PreparedSource, is_prepared, open_prepared
from manystream.data.sources.discovery import open_folder
from manystream.data.sources.files import FileSource
from manystream.data.sources.folder import LAYOUT
from manystream.data.sources.manifest import is_manifest, open_manifest
from manystream.data.sources.nyu import is_nyu, open_nyu
from manystream.data.sources.nyu_source import NyuSource
from manystream.data.sources.sun_rgbd import is_sun_rgbd, open_sun_rgbd
from manystream.data.sources.wanted import Wanted


class DataFormat(NamedTuple):
    """A kind of data set.

    Attributes:
        description: as messages name it.
        recognise: whether a path is one.
        open: one split of it.
        holds_out: whether validation may be a part of training, held out by the options.
    """

    description: str
    recognise: Callable[[Path], bool]
    open: Callable[[Wanted], FileSource | NyuSource | PreparedSource]
    holds_out: bool


FORMATS: dict[Format, DataFormat] = {
    "prepared": DataFormat("a prepared set", is_prepared, open_prepared, False),
    "manifest": DataFormat("a manifest", is_manifest, open_manifest, True),
    "nyu": DataFormat("NYU Depth v2", is_nyu, open_nyu, True),
    "sun_rgbd": DataFormat("SUN RGB-D", is_sun_rgbd, open_sun_rgbd, True),
    "folder": DataFormat("images in folders", lambda root: root.is_dir(), open_folder, False),
}
"""From the one that is surest to be recognised to the one that anything may be."""


def recognise(root: Path) -> Format:
    """Find out what is at a path.

    Raises:
        ValueError: if it is nothing that can be opened.
    """
    for name, kind in FORMATS.items():
        if kind.recognise(root):
            return name
    raise ValueError(
        f"--data.root {root} is no data set; expected a folder laid out as {LAYOUT}, SUN RGB-D or "
        "NYU Depth v2 as unpacked, a manifest (.csv, .parquet), or a prepared set"
    )
