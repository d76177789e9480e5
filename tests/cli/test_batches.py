"""What the commands choose to show."""

import numpy as np

from manystream.cli.batches import samples_to_show
from manystream.data import arrays


def test_shown_are_the_first_of_every_class_in_turn_complete_ones_before_others():
    labels = ["bed"] * 4 + ["desk"] * 3 + ["sofa"]
    images = {name: np.zeros((8, 2, 2, c), np.uint8) for name, c in (("rgb", 3), ("ir", 1))}
    has_ir = [False, True, True, True, True, True, True, False]
    table = arrays(images, labels, present={"ir": has_ir})
    assert samples_to_show(table, 3) == [1, 2, 4]
    assert samples_to_show(table, 4) == [1, 2, 4, 5]
    assert samples_to_show(table, 7) == [0, 1, 2, 3, 4, 5, 6]
    assert samples_to_show(table) == list(range(8))
