import os
import pickle
import struct
import threading
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFile

from manystream.data.image import IMAGE_SUFFIXES, UnreadableImageError, read_bands, read_image
from tests.data.builders import noise

COLOR = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = COLOR[..., 0]
RANGE = np.array([[0, 1, 255, 256], [1000, 32768, 65534, 65535]], dtype=np.uint16)
METRES = np.array([[0.0, 0.5, 1e-6], [9.75, 1e6, -3.25]], dtype=np.float32)


def png_bytes(pixels: np.ndarray, color_type: int) -> bytes:
    """A 16-bit PNG written from the specification, not by Pillow."""

    def chunk(name: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + checksum

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def assert_stored(path: Path, expected: np.ndarray) -> None:
    found = read_image(path)
    assert found.dtype == expected.dtype
    assert found.flags.writeable
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".PNG"])
@pytest.mark.parametrize("pixels", [COLOR, GREY], ids=["color", "grey"])
def test_8_bit_is_exact(tmp_path, suffix, pixels):
    path = tmp_path / f"x{suffix}"
    Image.fromarray(pixels).save(path)
    assert_stored(path, pixels.reshape(5, 7, -1))


def test_16_bit_png_keeps_its_values(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(png_bytes(RANGE, color_type=0))
    assert_stored(path, RANGE[..., None])


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bit_tiff_keeps_its_values(tmp_path, dtype):
    path = tmp_path / "x.tif"
    Image.fromarray(RANGE.astype(dtype)).save(path)
    assert_stored(path, RANGE[..., None])


def test_float_tiff_is_exact(tmp_path):
    path = tmp_path / "x.tiff"
    Image.fromarray(METRES).save(path)
    assert_stored(path, METRES[..., None])


def test_32_bit_integers_that_came_from_16_bits_go_back(tmp_path):
    path = tmp_path / "x.tif"
    Image.fromarray(RANGE.astype(np.int32)).save(path)
    assert_stored(path, RANGE[..., None])


def test_32_bit_integers_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "x.tif"
    Image.fromarray(np.array([[65536]], dtype=np.int32)).save(path)
    with pytest.raises(UnreadableImageError, match="do not fit uint16"):
        read_image(path)


def test_jpeg_is_close(tmp_path):
    path = tmp_path / "x.jpg"
    ramp = np.broadcast_to(np.linspace(0, 255, 64)[:, None, None], (64, 48, 3)).astype(np.uint8)
    Image.fromarray(ramp).save(path, quality=95)
    found = read_image(path)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - ramp).max() <= 4


def test_grey_jpeg_has_one_channel(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "x.jpeg")
    assert read_image(tmp_path / "x.jpeg").shape == (5, 7, 1)


def test_transparency_is_dropped(tmp_path):
    alpha = np.full((5, 7, 1), 9, np.uint8)
    Image.fromarray(np.concatenate([COLOR, alpha], -1)).save(tmp_path / "rgba.png")
    assert_stored(tmp_path / "rgba.png", COLOR)
    Image.fromarray(np.stack([GREY, alpha[..., 0]], -1)).save(tmp_path / "la.png")
    assert_stored(tmp_path / "la.png", GREY[..., None])


@pytest.mark.parametrize(
    "options", [{}, {"transparency": b"\x00\x80"}], ids=["plain", "see-through"]
)
def test_palette_becomes_rgb(tmp_path, options):
    colors = np.array([[10, 20, 30], [200, 100, 50]], dtype=np.uint8)
    image = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8))
    image.putpalette(colors.tobytes())
    image.save(tmp_path / "x.png", **options)
    assert_stored(tmp_path / "x.png", colors[[[0, 1], [1, 0]]])


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_color_is_refused_rather_than_cut_to_8(tmp_path, color_type, channels):
    path = tmp_path / "x.png"
    path.write_bytes(png_bytes(np.stack([RANGE] * channels, -1), color_type))
    with pytest.raises(UnreadableImageError, match=r"channels of 16 bits.*\.npy"):
        read_image(path)


@given(
    pixels=hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.float32, np.dtype(">u2"), np.dtype(">f4")]),
        hnp.array_shapes(min_dims=2, max_dims=3, max_side=5),
    )
)
def test_npy_is_exact(tmp_path_factory, pixels):
    path = tmp_path_factory.mktemp("npy") / "x.npy"
    np.save(path, pixels)
    expected = pixels.astype(pixels.dtype.newbyteorder("="))
    assert_stored(path, expected if pixels.ndim == 3 else expected[..., None])


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.array([[0.1, np.nan]]), np.array([[0.1, np.nan]], np.float32)),
        (np.array([[1.5]], np.float16), np.array([[1.5]], np.float32)),
        (np.array([[0, 65535]], np.int64), np.array([[0, 65535]], np.uint16)),
        (np.array([[True, False]]), np.array([[1, 0]], np.uint8)),
    ],
)
def test_npy_of_other_dtypes(tmp_path, stored, expected):
    np.save(tmp_path / "x.npy", stored)
    assert_stored(tmp_path / "x.npy", expected[..., None])


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros(4, np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros((1, 2, 3, 4), np.uint8),
        np.array([[-1]]),
        np.array([[1e300]]),
        np.array([[1j]]),
    ],
)
def test_npy_that_is_no_image(tmp_path, pixels):
    np.save(tmp_path / "x.npy", pixels)
    with pytest.raises(UnreadableImageError):
        read_image(tmp_path / "x.npy")


def test_pickled_npy_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(UnreadableImageError, match="pickle"):
        read_image(tmp_path / "x.npy")


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
@pytest.mark.parametrize("kept", [0.4, 0.95])
def test_truncated_file(tmp_path, suffix, kept):
    path = tmp_path / f"x{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    if suffix == ".npy":
        np.save(path, pixels)
    else:
        Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UnreadableImageError) as caught:
        read_image(path)
    assert caught.value.path == path
    assert caught.value.reason
    assert str(path) in str(caught.value)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_text_is_no_image(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_text("this is not an image")
    with pytest.raises(UnreadableImageError):
        read_image(path)


def test_every_flipped_bit_of_a_png_is_found(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(np.full((40, 50, 3), 128, np.uint8) ^ (COLOR[0, 0] & 15)).save(path)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(UnreadableImageError):
            read_image(path)


def test_what_follows_the_last_chunk_of_a_png_is_passed_over(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(COLOR).save(path)
    path.write_bytes(path.read_bytes() + b"appended by a camera")
    assert_stored(path, COLOR)


def test_missing_file_and_unknown_suffix(tmp_path):
    with pytest.raises(UnreadableImageError, match="No such file"):
        read_image(tmp_path / "x.png")
    with pytest.raises(UnreadableImageError, match=r"'\.bmp'; expected one of \.jpg"):
        read_image(tmp_path / "x.bmp")


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_and_a_folder_are_no_images(tmp_path, suffix, make):
    path, refused = tmp_path / f"x{suffix}", []
    make(path)

    def read():
        refuse_to_read(path, "no file")
        refused.append(path)

    reader = threading.Thread(target=read, daemon=True)  # A pipe would wait for ever.
    reader.start()
    reader.join(timeout=5)
    assert refused == [path]


def test_the_error_survives_a_worker_process():
    error = UnreadableImageError("a/b.png", "it is torn")
    assert isinstance(error, ValueError)
    copied = pickle.loads(pickle.dumps(error))
    assert (copied.path, copied.reason) == (error.path, error.reason)
    # torch's DataLoader rebuilds an exception from its message alone.
    assert str(UnreadableImageError(str(error))) == str(error)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff"])
def test_a_jpeg_with_another_name_is_told(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    Image.fromarray(COLOR).save(path, format="JPEG")
    with pytest.raises(UnreadableImageError, match=r"it is a JPEG; rename it|not a TIFF file"):
        read_image(path)


def test_a_png_with_a_jpegs_name_is_told(tmp_path):
    Image.fromarray(COLOR).save(tmp_path / "x.jpg", format="PNG")
    with pytest.raises(UnreadableImageError, match=r"it is named \.jpg, but it is a PNG; rename"):
        read_image(tmp_path / "x.jpg")


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_the_pixel_limit_holds_for_every_kind_of_file(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    np.save(path, COLOR) if suffix == ".npy" else Image.fromarray(COLOR).save(path)
    assert read_image(path, max_pixels=35).shape == (5, 7, 3)
    with pytest.raises(UnreadableImageError, match=r"it has . x . pixels; expected at most 34"):
        read_image(path, max_pixels=34)


@pytest.mark.parametrize("side", [9_000, 12_000, 200_000])
def test_a_small_file_of_a_huge_image_is_not_decoded(tmp_path, side):
    """A header that claims a size; the little that follows would be decoded for minutes."""
    path = tmp_path / "x.png"
    whole = png_bytes(RANGE, color_type=0)
    header = whole[12:16] + struct.pack(">II", side, side) + whole[24:29]
    path.write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])
    before = tracemalloc_peak(lambda: refuse_to_read(path))
    assert before < 2**20


def refuse_to_read(path: Path, reason: str = "pixels") -> None:
    with warnings.catch_warnings():  # Pillow's own, above 89 million pixels
        warnings.simplefilter("ignore")
        with pytest.raises(UnreadableImageError, match=reason):
            read_image(path)


def tracemalloc_peak(run) -> int:
    """Most bytes that Python and NumPy held at once."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


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
def test_transparency_of_a_tiff_is_dropped(tmp_path, dtype, extra):
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
