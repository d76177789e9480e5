"""Read one image file exactly as stored: JPEG, 8- and 16-bit PNG, TIFF and ``.npy``."""

from __future__ import annotations

import math
import stat
from functools import partial
from pathlib import Path

import numpy as np

from manystream.data.bands import check_deflated, has_bands, read_bands
from manystream.data.png import check_chunks
from manystream.extras import train_extra

with train_extra():
    from PIL import Image, ImageFile
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile
    from PIL.TiffImagePlugin import TiffImageFile

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".npy")

MAX_PIXELS = 2**26
"""Height times width that is decoded unless more is asked for: 192 MiB of RGB. A file of a few kB
can claim a thousand times as much."""

_PILLOW_FORMATS = ("JPEG", "PNG", "TIFF")
_PILLOW_CLASSES = {
    ".jpg": JpegImageFile,
    ".jpeg": JpegImageFile,
    ".png": PngImageFile,
    ".tif": TiffImageFile,
    ".tiff": TiffImageFile,
}
_STORED_DTYPES = (np.uint8, np.uint16, np.float32)
_AS_IT_IS = ("L", "RGB", "I", "F")


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
    if suffix == ".npy":
        return _decode_npy(path, max_pixels)
    if _PILLOW_CLASSES[suffix] is TiffImageFile and has_bands(path):
        return read_bands(path, partial(_check_size, max_pixels=max_pixels))
    return _decode_pillow(path, max_pixels)


def _decode_npy(path: Path, max_pixels: int) -> np.ndarray:
    # A text file would make np.load speak of pickles; opened so, it is said to be no .npy file.
    mapped = np.lib.format.open_memmap(path, mode="r")
    _check_size(mapped.shape[:2], max_pixels)
    return np.array(mapped)


def _decode_pillow(path: Path, max_pixels: int) -> np.ndarray:
    with Image.open(path, formats=_PILLOW_FORMATS) as image:
        if not isinstance(image, _PILLOW_CLASSES[path.suffix.lower()]):
            raise ValueError(f"it is named {path.suffix}, but it is a {image.format}; rename it")
        _check_size(image.size, max_pixels)
        _refuse_lossy_depth(image)
        if isinstance(image, PngImageFile):
            check_chunks(path)
        if isinstance(image, TiffImageFile):
            check_deflated(path)
        return np.array(_plain_mode(image))


def _check_size(shape: tuple[int, ...], max_pixels: int) -> None:
    if math.prod(shape) > max_pixels:
        size = " x ".join(map(str, shape))
        raise ValueError(f"it has {size} pixels; expected at most {max_pixels} in all (max_pixels)")


def _refuse_lossy_depth(image: ImageFile.ImageFile) -> None:
    # Pillow has no 16-bit colour mode: it would keep the upper 8 bits and say nothing.
    if image.mode[0] not in "IF" and any(";16" in _raw_mode(tile[3]) for tile in image.tile):
        raise ValueError(
            "it has several channels of 16 bits, of which Pillow keeps 8; "
            "store it as TIFF or .npy, or with 8 bits a channel"
        )


def _raw_mode(codec_arguments: object) -> str:
    first = codec_arguments[0] if isinstance(codec_arguments, tuple) else codec_arguments
    return str(first)


def _plain_mode(image: Image.Image) -> Image.Image:
    if image.mode in _AS_IT_IS or image.mode.startswith("I;16"):
        return image
    if image.mode in ("1", "LA", "La"):
        return image.convert("L")
    if image.mode in ("P", "PA"):  # Straight to RGB warns where the palette has transparency.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _stored_dtype(pixels: np.ndarray) -> np.ndarray:
    for dtype in _STORED_DTYPES:
        if pixels.dtype.newbyteorder("=") == dtype:
            return pixels.astype(dtype, copy=False)
    if pixels.dtype.kind == "b":
        return pixels.astype(np.uint8)
    if pixels.dtype.kind == "f":
        with np.errstate(over="raise"):
            return pixels.astype(np.float32)
    return _as_uint16(pixels)


def _as_uint16(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype.kind not in "iu" or (pixels.size and not _fits_uint16(pixels)):
        raise ValueError(
            f"its values are {pixels.dtype} and do not fit uint16; "
            "expected uint8, uint16 or float32; store it as float32"
        )
    return pixels.astype(np.uint16)


def _fits_uint16(pixels: np.ndarray) -> bool:
    return bool(pixels.min() >= 0 and pixels.max() <= np.iinfo(np.uint16).max)


def _with_channels(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim not in (2, 3) or pixels.size == 0:
        raise ValueError(f"its shape is {pixels.shape}; expected (H, W) or (H, W, C), not empty")
    return pixels[..., None] if pixels.ndim == 2 else pixels
