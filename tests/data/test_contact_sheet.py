import numpy as np
import pytest

from manystream.data.contact_sheet import contact_sheet, picture
from manystream.data.image import UnreadableImageError
from manystream.data.streams import StreamSpec
from tests.data.builders import DEPTH, OTHER, RGB, noise, ramps, table_of

METRES = StreamSpec("depth", 1, "depth", "m")


def texts(figure) -> list[str]:
    """Every word on a sheet."""
    inside = [t.get_text() for axes in figure.axes for t in axes.texts]
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    return [t.get_text() for t in figure.texts] + inside + [t for t in titles if t]


def captions(figure) -> list[str]:
    return [axes.get_xlabel() for axes in figure.axes]


def sheet(samples, targets, **arguments):
    return contact_sheet(table_of((RGB, DEPTH), samples, targets), **arguments)


def test_every_cell_says_what_it_shows():
    far = np.full((6, 8, 1), 2000, np.uint16)
    far[:3] = 0
    torn = UnreadableImageError("x.png", "torn")
    figure = sheet([[noise(6, 8), far], [noise(6, 8), None], [torn, far]], [0, 0, 1], title="train")
    assert set(texts(figure)) == {"train", "bed", "desk", "absent", "unreadable", "0", "1", "2"}
    assert captions(figure).count("depth\n2000 to 2000 as stored, 50% none") == 2
    assert captions(figure).count("depth\n") == 1
    assert sum(len(axes.images) for axes in figure.axes) == 4


def test_samples_are_chosen_by_seed_and_limited_per_class():
    samples = [[noise(4, 4), None] for _ in range(12)]

    def chosen(seed, per_class=3):
        figure = sheet(samples, [i % 2 for i in range(12)], seed=seed, per_class=per_class)
        return [text for text in texts(figure) if text.isdigit()]

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)
    assert [int(i) % 2 for i in chosen(1)] == [0, 0, 0, 1, 1, 1]
    assert len(chosen(0, per_class=100)) == 12
    with pytest.raises(ValueError, match="per_class=0; expected at least 1"):
        chosen(0, per_class=0)


def test_a_class_without_samples_has_no_row():
    assert "desk" not in texts(sheet([[noise(4, 4), None]], [0]))


def test_depth_is_mapped_between_its_percentiles_and_grey_without_reading():
    depth = np.linspace(1, 3, 400, dtype=np.float32).reshape(20, 20, 1)
    depth[0, 0], depth[0, 1], depth[0, 2] = 0, np.nan, 1000
    shown = picture(depth, METRES)
    assert shown.caption == "1.05 to 2.97 m, 1% none"
    np.testing.assert_array_equal(shown.pixels[0, :2], 150)
    assert len(np.unique(shown.pixels.reshape(-1, 3), axis=0)) > 100
    assert picture(depth * 0, METRES).caption == "no reading"


def test_color_stays_as_it_is_and_large_images_become_small():
    image = noise(30, 40)
    np.testing.assert_array_equal(picture(image, RGB).pixels, image)
    assert max(picture(noise(700, 900), RGB).pixels.shape) <= 160


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_other_streams_are_stretched_to_three_channels(channels):
    values = np.repeat(ramps(30, 20)[..., :1], channels, axis=2) * 70 - 20
    shown = picture(values, StreamSpec("x", channels))
    assert shown.pixels.shape == (30, 20, 3)
    assert (shown.pixels.min(), shown.pixels.max()) == (0, 255)
    assert shown.caption.endswith(f", {channels} ch.")


def test_values_that_are_not_finite_are_shown_without_a_warning():
    values = ramps(8, 8)
    values[0], values[1] = np.nan, np.inf
    assert picture(values, OTHER).pixels.shape == (8, 8, 3)
    assert picture(values * np.nan, OTHER).caption == "0.00 to 0.00, 2 ch."
