"""Read one image file exactly as stored: JPEG, 8- and 16-bit PNG, TIFF and ``.npy``."""

from __future__ import annotations

import math
import stat
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from manystream.extras import train_extra

with train_extra():
    from PIL import Image, ImageFile

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

MAX_PIXELS = 2**26
"""Height times width that is decoded unless more is asked for: 192 MiB of RGB. A file of a few kB
can claim a thousand times as much."""

_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF"}
IMAGE_SUFFIXES = (*_FORMATS, ".npy")

_AT_ONCE_BYTES = 2**20
_DEFLATE = (8, 32946)  # Adobe's number, and the older one
_ALPHA = (1, 2)  # ExtraSamples of the TIFF 6.0 specification: associated, unassociated


class UnreadableImageError(ValueError):
    """A file that is missing, damaged, or not an image that can be kept exactly.

    Attributes:
        path: the file.
        reason: what is wrong with it.
    """

    # `reason` has a default because torch rebuilds a worker's exception from its message alone.
    def __init__(self, path: str | Path, reason: str = "") -> None:
        super().__init__(path, reason)
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        path = str(self.args[0])
        return f"cannot read the image {path}: {self.reason}" if self.reason else path


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a whole image file, so that a truncated one is found.

    Values are never scaled: 16-bit PNG and TIFF give uint16. Transparency is dropped, palettes
    become RGB, orientation tags are not applied. A TIFF may have any number of bands, as channels
    or as pages. In ``.npy`` files float64 becomes float32 and other integers become uint16 where
    they fit.

    Args:
        path: a file whose suffix is one of ``IMAGE_SUFFIXES`` and says what the file is; ``.npy``
            holds (H, W) or (H, W, C).
        max_pixels: height × width of the largest image to decode.

    Returns:
        Shape (H, W, C); uint8, uint16 or float32.

    Raises:
        UnreadableImageError: if the file is missing, damaged, too large, or would lose bits.
    """
    path = Path(path)
    try:
        return _with_channels(_stored_dtype(_decode(path, max_pixels)))
    except Exception as error:  # On damaged files Pillow and NumPy raise a dozen different kinds.
        raise UnreadableImageError(path, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, OSError | ValueError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _decode(path: Path, max_pixels: int) -> np.ndarray:
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise ValueError(f"its suffix is {suffix!r}; expected one of {', '.join(IMAGE_SUFFIXES)}")
    if not stat.S_ISREG(path.stat().st_mode):  # Opening a pipe would wait for ever.
        raise ValueError("it is no file, but a folder, a pipe or a device; take it away")
    check_size = partial(_check_size, max_pixels=max_pixels)
    if suffix == ".npy":
        # A text file would make np.load speak of pickles; opened so, it is said to be no .npy file.
        mapped = np.lib.format.open_memmap(path, mode="r")
        check_size(mapped.shape[:2])
        return np.array(mapped)
    if _FORMATS[suffix] == "TIFF" and (bands := read_bands(path, check_size)) is not None:
        return bands
    with Image.open(path, formats=("JPEG", "PNG", "TIFF")) as image:
        found = (image.format or "").replace("MPO", "JPEG")  # A JPEG of several pictures.
        if found != _FORMATS[suffix]:
            raise ValueError(f"it is named {path.suffix}, but it is a {found}; rename it")
        check_size(image.size)
        _refuse_lossy_depth(image)
        if found == "PNG":
            _check_chunks(path)
        return np.array(_plain_mode(image))


def _check_size(shape: tuple[int, ...], max_pixels: int) -> None:
    if math.prod(shape) > max_pixels:
        size = " x ".join(map(str, shape))
        raise ValueError(f"it has {size} pixels; expected at most {max_pixels} in all (max_pixels)")


def _refuse_lossy_depth(image: ImageFile.ImageFile) -> None:
    # Pillow has no 16-bit colour mode: it would keep the upper 8 bits and say nothing.
    if image.mode[0] not in "IF" and any(";16" in str(tile[3]) for tile in image.tile):
        raise ValueError(
            "it has several channels of 16 bits, of which Pillow keeps 8; "
            "store it as TIFF or .npy, or with 8 bits a channel"
        )


def _check_chunks(path: Path) -> None:
    """Compare every chunk of a PNG file with its CRC-32; Pillow leaves out those of the pixels."""
    with path.open("rb") as file:
        file.seek(8)  # behind the signature
        name = b""
        while name != b"IEND":
            left, name = int.from_bytes(file.read(4), "big"), file.read(4)
            checksum = zlib.crc32(name)
            # Not at once: a damaged length may claim 4 GiB.
            while left and (part := file.read(min(left, _AT_ONCE_BYTES))):
                checksum, left = zlib.crc32(part, checksum), left - len(part)
            stored = file.read(4)
            if left or len(stored) < 4:
                raise ValueError("it is truncated: it ends before its last chunk")
            if checksum != int.from_bytes(stored, "big"):
                chunk = name.decode("latin-1")
                raise ValueError(f"the checksum of its chunk {chunk!r} does not match")


def _plain_mode(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "RGB", "I", "F") or image.mode.startswith("I;16"):
        return image
    if image.mode in ("1", "LA", "La"):
        return image.convert("L")
    if image.mode in ("P", "PA"):  # Straight to RGB warns where the palette has transparency.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _stored_dtype(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.dtype in (np.uint8, np.uint16, np.float32):
        return pixels
    if pixels.dtype.kind == "b":
        return pixels.astype(np.uint8)
    if pixels.dtype.kind == "f":
        with np.errstate(over="raise"):
            return pixels.astype(np.float32)
    if pixels.dtype.kind in "iu" and np.array_equal(pixels, pixels.astype(np.uint16)):
        return pixels.astype(np.uint16)
    raise ValueError(
        f"its values are {pixels.dtype} and do not fit uint16; "
        "expected uint8, uint16 or float32; store it as float32"
    )


def _with_channels(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim not in (2, 3) or pixels.size == 0:
        raise ValueError(f"its shape is {pixels.shape}; expected (H, W) or (H, W, C), not empty")
    return pixels[..., None] if pixels.ndim == 2 else pixels


def read_bands(path: Path, check_size: Callable[[tuple[int, ...]], None]) -> np.ndarray | None:
    """Read every band of a TIFF file's first image as stored; None if Pillow reads all of it.

    Pillow would not if the image goes on over several pages, if colours have more than 8 bits, or
    if there are samples that are neither grey, colours nor transparency, which is dropped. The
    result is (H, W, C); ``check_size`` gets height and width before anything is decoded.

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
