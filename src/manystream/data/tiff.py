"""TIFF files: those with more than Pillow keeps are read here, and damaged ones found."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

_DEFLATE = (8, 32946)  # Adobe's number, and the older one
_AT_ONCE_BYTES = 2**20
_ALPHA = (1, 2)  # ExtraSamples of the TIFF 6.0 specification: associated, unassociated


def read_bands(path: Path, check_size: Callable[[tuple[int, ...]], None]) -> np.ndarray | None:
    """Read every band of a TIFF file's first image as stored, if Pillow would lose some of it.

    It would if the image goes on over several pages, if colours have more than 8 bits, or if there
    are samples that are neither grey, colours nor transparency, which is dropped.

    Args:
        path: the file.
        check_size: called with height and width before anything is decoded.

    Returns:
        Shape (H, W, C), with the file's dtype; None if Pillow reads all of it.

    Raises:
        ValueError: if the file is cut off, or its pixels are not what was written.
    """
    from tifffile import TiffFile  # Only those who have TIFF files need it.

    with TiffFile(path) as file:
        page: TiffPage = file.pages.first
        _check_whole(file, page)
        check_size((page.imagelength, page.imagewidth))
        image, samples = file.series[0], int(page.samplesperpixel)
        bands = samples - sum(int(extra) in _ALPHA for extra in page.extrasamples)
        deep_color = samples > 1 and page.dtype != np.uint8
        if len(image.pages) == 1 and bands in (1, 3) and not deep_color:
            _check_deflated(file, page)
            return None
        pixels = image.asarray()
        # Bands are first where they are stored one after the other, as planes or as pages.
        if image.axes.endswith("YX") and pixels.ndim == 3:
            pixels = np.moveaxis(pixels, 0, -1)
        return pixels[..., :bands] if 1 < samples != bands else pixels


def _check_whole(file: TiffFile, page: TiffPage) -> None:
    """Refuse a file that ends before the pixels, or a part of their description, do."""
    tiff, handle = file.tiff, file.filehandle
    handle.seek(page.offset)
    (described,) = struct.unpack(tiff.tagnoformat, handle.read(tiff.tagnosize))
    ends = map(sum, zip(page.dataoffsets, page.databytecounts, strict=False))
    # tifffile leaves a tag out if it, or its value, is beyond the end of the file.
    if len(page.tags) < described or max(ends, default=0) > handle.size:
        raise ValueError("it is damaged or cut off: not all that it describes is in it")


def _check_deflated(file: TiffFile, page: TiffPage) -> None:
    """Compare deflated pixels with their checksums; libtiff stops before it comes to them."""
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
