import numpy as np
import pytest

from manystream.data.streams import METRES_PER, ToMetres


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
