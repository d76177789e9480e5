"""Which folders of SUN RGB-D show the same room, told from their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import pairwise
from typing import NamedTuple

# A video of the second Kinect: number_date_time_device_frame, of which only the frame differs.
_VIDEO = re.compile(r"^(kv2/.+/)\d+_(.+)_rgbf\d+(?:-resize)?$")
_PLACE = re.compile(r"^(xtion/sun3ddata/[^/]+)/")
_NUMBERED = re.compile(r"^(kv1/.+/\D*)(\d+)$")
_TIMED = re.compile(r"^((?:kv2|realsense|xtion)/[^/]+/)" + r"[-_]".join([r"(\d+)"] * 6))

_NEXT_NUMBER = 1
_SAME_VISIT_S = 60


class _Shot(NamedTuple):
    """One of a series of single pictures; those at most ``reach`` apart may show one room."""

    series: str
    position: int
    reach: int


def scene_groups(folders: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Name the group of each folder; folders of one room share it as far as names tell.

    - ``xtion/sun3ddata/<place>/…``: all recordings of a place.
    - ``kv2/kinect2data/…_rgbf…``: all frames of a video.
    - ``kv1``: pictures with consecutive numbers and the same label. NYU's are sorted by scene, and
      the names of its scenes are not part of SUN RGB-D.
    - ``realsense`` and what else has a date and a time: pictures of one camera with the same label,
      each less than a minute after the one before it.
    - Anything else: its own.

    Args:
        folders: relative to SUNRGBD, with forward slashes.
        labels: class of each.
    """
    groups = [_recording(folder) or folder for folder in folders]
    shots = {i: shot for i, folder in enumerate(folders) if (shot := _shot(folder)) is not None}
    order = sorted(shots, key=lambda i: (shots[i].series, labels[i], shots[i].position))
    for before, i in pairwise(order):
        a, b = shots[before], shots[i]
        near = a.series == b.series and b.position - a.position <= b.reach
        if near and labels[before] == labels[i]:
            groups[i] = groups[before]
    return groups


def _recording(folder: str) -> str | None:
    if found := _PLACE.match(folder):
        return found[1]
    if found := _VIDEO.match(folder):
        return found[1] + found[2]
    return None


def _shot(folder: str) -> _Shot | None:
    if _recording(folder) is not None:
        return None
    if found := _NUMBERED.match(folder):
        return _Shot(found[1], int(found[2]), _NEXT_NUMBER)
    if found := _TIMED.match(folder):
        return _timed(found[1], [int(part) for part in found.groups()[1:]])
    return None


def _timed(series: str, parts: Sequence[int]) -> _Shot | None:
    try:
        moment = datetime(*parts, tzinfo=timezone.utc)  # type: ignore[arg-type, misc]
    except ValueError:  # Six numbers that are no date.
        return None
    return _Shot(series, int(moment.timestamp()), _SAME_VISIT_S)
