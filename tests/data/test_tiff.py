import numpy as np
import pytest
import tifffile
from PIL import Image

from manystream.data.image import UnreadableImageError, read_image
from manystream.data.tiff import read_bands
from tests.data.builders import noise

SHAPE = (6, 8)


def values(channels: int, dtype) -> np.ndarray:
    count = SHAPE[0] * SHAPE[1] * channels
    return (np.arange(count).reshape(*SHAPE, channels) * 7 % 251 * 2).astype(dtype)


def any_size(shape) -> None:
    """Refuse no size."""


def write(path, pixels, **options):
    tifffile.imwrite(path, pixels, **options)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [2, 4, 5, 13])
@pytest.mark.parametrize("placed", ["contig", "separate", "pages"])
def test_any_number_of_bands_is_exact(tmp_path, dtype, channels, placed):
    pixels = values(channels, dtype)
    path = tmp_path / "x.tif"
    if placed == "contig":
        write(path, pixels, photometric="minisblack", planarconfig="contig")
    else:
        planes = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
        planar = {"planarconfig": "separate"} if placed == "separate" else {}
        write(path, planes, photometric="minisblack", **planar)
    assert read_bands(path, any_size) is not None
    found = read_image(path)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, pixels)


def test_color_of_16_bits_is_exact(tmp_path):
    pixels = values(3, np.uint16)
    np.testing.assert_array_equal(
        read_image(write(tmp_path / "x.tif", pixels, photometric="rgb")), pixels
    )


@pytest.mark.parametrize(("dtype", "extra"), [(np.uint8, "unassalpha"), (np.uint16, "assocalpha")])
def test_transparency_is_dropped(tmp_path, dtype, extra):
    pixels = values(4, dtype)
    path = write(tmp_path / "x.tif", pixels, photometric="rgb", extrasamples=[extra])
    np.testing.assert_array_equal(read_image(path), pixels[..., :3])


def test_near_infrared_after_color_is_no_transparency(tmp_path):
    pixels = values(4, np.uint8)
    path = write(tmp_path / "x.tif", pixels, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(read_image(path), pixels)


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        (values(1, np.uint16)[..., 0], {}),
        (values(3, np.uint8), {"photometric": "rgb"}),
        (values(1, np.float32)[..., 0], {"compression": "zlib"}),
    ],
)
def test_plain_images_are_left_to_pillow(tmp_path, pixels, options):
    path = write(tmp_path / "x.tif", pixels, **options)
    assert read_bands(path, any_size) is None
    np.testing.assert_array_equal(read_image(path), pixels.reshape(*SHAPE, -1))


def test_compressed_bands(tmp_path):
    pixels = values(5, np.uint16)
    path = write(tmp_path / "x.tif", pixels, planarconfig="contig", compression="zlib")
    np.testing.assert_array_equal(read_image(path), pixels)


def test_the_pixel_limit_holds_for_bands(tmp_path):
    path = write(tmp_path / "x.tif", values(5, np.uint16), planarconfig="contig")
    with pytest.raises(UnreadableImageError, match="6 x 8 pixels; expected at most 47"):
        read_image(path, max_pixels=47)


def with_deflate(path, pixels, **options) -> bytes:
    """Write a TIFF that is packed by Deflate, and give its bytes."""
    Image.fromarray(pixels).save(path, compression="tiff_adobe_deflate", **options)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, np.uint8), (1, np.uint16), (1, np.float32), (3, np.uint8)]
)
def test_a_tiff_that_is_cut_off_never_gives_other_pixels(tmp_path, channels, dtype):
    pixels = noise(40, 52, channels).astype(dtype).squeeze()
    path = tmp_path / "x.tif"
    whole = with_deflate(path, pixels)
    for cut in range(1, 40):
        path.write_bytes(whole[:-cut])
        assert found_or_none(path) in (None, pixels.tobytes()), cut


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_flipped_bit_of_deflated_pixels_never_gives_other_ones(tmp_path, dtype):
    path = tmp_path / "x.tif"
    pixels = noise(12, 9, 1)[..., 0].astype(dtype)
    whole = with_deflate(path, pixels)
    with tifffile.TiffFile(path) as file:
        (first,), (length,) = file.pages.first.dataoffsets, file.pages.first.databytecounts
    for bit in range(8 * first, 8 * (first + length)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert found_or_none(path) in (None, pixels.tobytes()), bit


def test_a_deflated_tiff_of_several_strips_is_exact(tmp_path):
    path = tmp_path / "x.tif"
    for predictor in (1, 2):
        with_deflate(path, noise(40, 52), tiffinfo={278: 7, 317: predictor})
        np.testing.assert_array_equal(read_image(path), noise(40, 52))


def found_or_none(path) -> bytes | None:
    """Pixels of a file; None if it is found to be damaged."""
    try:
        return read_image(path).tobytes()
    except UnreadableImageError:
        return None
