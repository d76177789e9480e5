import numpy as np
import pytest

from manystream.data.augmentation import WHOLE, Augmentation, Draw, draw, pixels

DEPTH = {"depth_scale": 0.2, "depth_noise": 0.05, "depth_holes": 4}


def drawn(seed=0, sizes=((24, 32),), **settings) -> Draw:
    return draw(Augmentation(**settings), sizes, np.random.default_rng(seed))


def test_nothing_is_the_default_of_a_draw():
    assert Draw() == Draw(rows=WHOLE, columns=WHOLE, flipped=False, color=None, depth=None)
    assert drawn(scale=(1, 1), flip=0, color=0) == Draw()


def test_what_is_done_to_depth_changes_nothing_before_it():
    plain, disturbed = drawn(seed=3), drawn(seed=3, **DEPTH)
    assert plain.depth is None
    assert disturbed.depth is not None
    assert (plain.rows, plain.columns, plain.color) == (
        disturbed.rows,
        disturbed.columns,
        disturbed.color,
    )


def test_depth_draws_stay_in_their_ranges():
    draws = [drawn(seed, **DEPTH).depth for seed in range(200)]
    scales = [depth.scale for depth in draws]
    assert 0.8 <= min(scales) < 0.82
    assert 1.18 < max(scales) <= 1.2
    assert {len(depth.holes) for depth in draws} == {0, 1, 2, 3, 4}
    assert len({depth.seed for depth in draws}) > 190
    sides = [span.stop - span.start for depth in draws for hole in depth.holes for span in hole]
    assert 0.05 <= min(sides) < 0.06
    assert 0.24 < max(sides) <= 0.25 + 1e-9
    assert all(0 <= s.start < s.stop <= 1 for d in draws for hole in d.holes for s in hole)


def test_the_box_lies_on_the_coarsest_grid():
    for seed in range(50):
        found = drawn(seed, sizes=((48, 64), (12, 16)))
        assert found.rows.start * 12 == pytest.approx(round(found.rows.start * 12))
        assert found.columns.stop * 16 == pytest.approx(round(found.columns.stop * 16))
        first, last = pixels(found.rows, 12)
        assert pixels(found.rows, 48) == (4 * first, 4 * last)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", (0.0, 1.0)),
        ("scale", (0.9, 0.5)),
        ("scale", (0.5, 1.1)),
        ("flip", 1.5),
        ("color", -1),
        ("depth_scale", 1.0),
        ("depth_noise", -0.1),
        ("depth_holes", -1),
        ("depth_holes", 65),
    ],
)
def test_numbers_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        Augmentation(**{name: value})
