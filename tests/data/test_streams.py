import numpy as np
import pytest

from manystream.data.files import StreamHints
from manystream.data.folder import folder
from manystream.data.image import UnreadableImageError
from manystream.data.streams import METRES_PER, StreamSpec, ToMetres
from tests.data.builders import DEPTH, RGB, write_image

METRIC = StreamSpec("depth", 1, "depth", "m")


@pytest.fixture
def files(tmp_path):
    """A grey image of 16 bits, and one of 8 with three channels."""
    write_image(tmp_path / "grey.png", np.ones((2, 3), np.uint16))
    write_image(tmp_path / "color.png", np.ones((2, 3, 3), np.uint8))
    return tmp_path


@pytest.mark.parametrize(
    "name", ["infrared", "IR", "ir_left", "left-ir", "nir", "thermal", "Infrared2"]
)
def test_infrared_is_no_depth(files, name):
    assert StreamHints().describe(name, [files / "grey.png"]) == StreamSpec(name, 1, "other")


@pytest.mark.parametrize("name", ["depth", "mirror", "first", "range"])
def test_other_names_say_nothing(files, name):
    assert StreamHints().describe(name, [files / "grey.png"]).kind == "depth"


def test_hha_is_no_color(files):
    assert StreamHints().describe("hha", [files / "color.png"]) == StreamSpec("hha", 3, "other")
    assert StreamHints().describe("left", [files / "color.png"]).kind == "color"


def test_what_is_told_counts_more_than_what_is_seen(files):
    told = StreamHints(kinds={"ir": "depth", "x": "other"})
    assert told.describe("ir", [files / "grey.png"]).kind == "depth"
    assert told.describe("x", [files / "grey.png"]).kind == "other"


def test_a_unit_makes_depth_in_metres(files):
    told = StreamHints(units={"ir": "cm"})
    assert told.describe("ir", [files / "grey.png"]) == StreamSpec("ir", 1, "depth", "m")
    decoded = {x.spec.name: x.decode for x in told.columns([StreamSpec("ir", 1), RGB], files)}
    assert decoded == {"ir": ToMetres("cm"), "rgb": None}


def test_the_first_readable_image_is_looked_at(files):
    (files / "torn.png").write_text("torn")
    shown = [files / "torn.png", files / "grey.png"]
    assert StreamHints().describe("depth", shown) == DEPTH
    with pytest.raises(UnreadableImageError, match=r"torn\.png"):
        StreamHints().describe("depth", shown[:1])
    with pytest.raises(UnreadableImageError, match="expected at most 5"):
        StreamHints(max_pixels=5).describe("depth", shown[1:])


def test_hints_fit_the_data():
    StreamHints(kinds={"rgb": "color"}, units={"depth": "mm"}).check([METRIC], ["rgb", "depth"])
    StreamHints(units={"depth": "mm"}).check([RGB], ["rgb", "depth"])
    with pytest.raises(ValueError, match="units names the stream 'x'; the data has rgb"):
        StreamHints(units={"x": "mm"}).check([RGB], ["rgb"])


def test_a_unit_is_given_exactly_where_metres_are_taken():
    with pytest.raises(ValueError, match=r"in metres; give the files' unit: units="):
        StreamHints().check([RGB, METRIC], ["rgb", "depth"])
    with pytest.raises(ValueError, match="as its files store it; leave out the files' unit"):
        StreamHints(units={"depth": "mm"}).check([RGB, DEPTH], ["rgb", "depth"])


def test_folders_take_hints_too(tmp_path):
    write_image(tmp_path / "train/depth/bed/a.png", np.ones((2, 3), np.uint16))
    told = {"units": {"depth": "mm"}, "classes": ("bed", "desk")}
    assert folder(tmp_path, **told).streams == (METRIC,)


@pytest.mark.parametrize(
    ("unit", "one_metre"),
    [("m", 1), ("dm", 10), ("cm", 100), ("mm", 1000), ("um", 1e6), ("in", 1 / 0.0254)],
)
def test_a_metre_in_every_unit(unit, one_metre):
    assert ToMetres(unit)(np.array([one_metre])).item() == 1


def test_feet():
    assert ToMetres("ft")(np.array([10])).item() == np.float32(3.048)
    assert len(METRES_PER) == 7


def test_all_millimetres_of_16_bits_are_the_nearest_float():
    millimetres = np.arange(2**16, dtype=np.uint16)
    found = ToMetres("mm")(millimetres)
    assert found.dtype == np.float32
    np.testing.assert_array_equal((found.astype(np.float64) * 1000).round(), millimetres)


def test_what_is_no_depth_stays_what_it_is():
    found = ToMetres("cm")(np.array([0, -5, np.nan, np.inf]))
    np.testing.assert_array_equal(found, np.array([0, -0.05, np.nan, np.inf], np.float32))
