"""TIFF files with more than Pillow keeps: any number of bands, 16 bits or floats in each."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

CheckSize = Callable[[tuple[int, ...]], None]

_DEFLATE = (8, 32946)  # Adobe's number, and the older one
_AT_ONCE_BYTES = 2**20
_ALPHA = (1, 2)  # ExtraSamples of the TIFF 6.0 specification: associated, unassociated


def has_bands(path: Path) -> bool:
    """Whether a TIFF file must be read by :func:`read_bands`, because Pillow would lose some of it.

    It would if the image goes on over several pages, if colours have more than 8 bits, or if there
    are samples that are neither grey, colours nor transparency.

    Raises:
        ValueError: if the file is cut off, which Pillow would read as other pixels.
    """
    with _open(path) as file:
        page = _first_page(file)
        _check_whole(file, page)
        several_pages = len(file.series[0].pages) > 1
        return several_pages or _num_bands(page) not in (1, 3) or _is_deep_color(page)


def read_bands(path: Path, check_size: CheckSize) -> np.ndarray:
    """Read every band of a TIFF file's first image as it is stored; transparency is dropped.

    Args:
        path: the file.
        check_size: called with height and width before anything is decoded.

    Returns:
        Shape (H, W, C), with the file's dtype.
    """
    with _open(path) as file:
        page = _first_page(file)
        check_size((page.imagelength, page.imagewidth))
        image = file.series[0]
        pixels = image.asarray()
        # Bands are first where they are stored one after the other, as planes or as pages.
        bands_first = image.axes.endswith("YX")
        pixels = np.moveaxis(pixels, 0, -1) if bands_first and pixels.ndim == 3 else pixels
        has_alpha = page.samplesperpixel > 1 and _num_bands(page) < page.samplesperpixel
        return pixels[..., : _num_bands(page)] if has_alpha else pixels


def check_deflated(path: Path) -> None:
    """Compare pixels that are packed by Deflate with their checksums.

    libtiff stops where it has enough pixels, which is before it comes to the checksum.

    Raises:
        ValueError: if they are not what was written.
    """
    with _open(path) as file:
        page = _first_page(file)
        if page.compression not in _DEFLATE or page.fillorder != 1:
            return
        for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
            file.filehandle.seek(offset)
            if length and not _is_whole(file.filehandle.read(length)):
                raise ValueError("it is damaged: the checksum of its pixels does not match")


def _is_whole(packed: bytes) -> bool:
    unpacker = zlib.decompressobj()
    try:
        while not unpacker.eof and (unpacker.decompress(packed, _AT_ONCE_BYTES) or packed):
            packed = unpacker.unconsumed_tail
    except zlib.error:
        return False
    return unpacker.eof


def _open(path: Path) -> TiffFile:
    from tifffile import TiffFile  # Only those who have TIFF files need it.

    return TiffFile(path)


def _first_page(file: TiffFile) -> TiffPage:
    page: TiffPage = file.pages.first
    return page


def _check_whole(file: TiffFile, page: TiffPage) -> None:
    """Refuse a file that ends before the pixels or a part of their description."""
    tiff, handle = file.tiff, file.filehandle
    handle.seek(page.offset)
    (described,) = struct.unpack(tiff.tagnoformat, handle.read(tiff.tagnosize))
    # tifffile leaves a tag out if it, or its value, is beyond the end of the file.
    if len(page.tags) < described or _end(page) > handle.size:
        raise ValueError("it is damaged or cut off: not all that it describes is in it")


def _end(page: TiffPage) -> int:
    """Where in the file a page's last pixel ends, in bytes."""
    ends = (sum(part) for part in zip(page.dataoffsets, page.databytecounts, strict=False))
    return max(ends, default=0)


def _num_bands(page: TiffPage) -> int:
    alpha = sum(int(extra) in _ALPHA for extra in page.extrasamples)
    return int(page.samplesperpixel) - alpha


def _is_deep_color(page: TiffPage) -> bool:
    return page.samplesperpixel > 1 and page.dtype != np.uint8
