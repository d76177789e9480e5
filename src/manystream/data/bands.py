"""TIFF files with more than Pillow keeps: any number of bands, 16 bits or floats in each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

CheckSize = Callable[[tuple[int, ...]], None]

_ALPHA = (1, 2)  # ExtraSamples of the TIFF 6.0 specification: associated, unassociated


def has_bands(path: Path) -> bool:
    """Whether a TIFF file must be read by :func:`read_bands`, because Pillow would lose some of it.

    It would if the image goes on over several pages, if colours have more than 8 bits, or if there
    are samples that are neither grey, colours nor transparency.
    """
    with _open(path) as file:
        page = _first_page(file)
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


def _open(path: Path) -> TiffFile:
    from tifffile import TiffFile  # Only those who have TIFF files need it.

    return TiffFile(path)


def _first_page(file: TiffFile) -> TiffPage:
    page: TiffPage = file.pages.first
    return page


def _num_bands(page: TiffPage) -> int:
    alpha = sum(int(extra) in _ALPHA for extra in page.extrasamples)
    return int(page.samplesperpixel) - alpha


def _is_deep_color(page: TiffPage) -> bool:
    return page.samplesperpixel > 1 and page.dtype != np.uint8
