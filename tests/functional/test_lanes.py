"""Lanes change where work runs, and nothing else; without a GPU they are not there."""

import pytest
import torch

from manystream.functional import lanes

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_without_lanes_streams_take_turns():
    with lanes.usable(None), lanes.side_by_side(2):
        assert lanes.each(lambda x, y: x + y, [1, 2], [10, 20]) == [11, 22]


def test_streams_that_differ_in_number_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        lanes.each(lambda x, y: x + y, [1, 2], [10])


def test_on_the_cpu_there_is_nothing_to_wait_for():
    x = torch.zeros(1)
    assert lanes.here(x) is None
    lanes.read_here(x, None)
    lanes.meet([x, x])


@needs_gpu
def test_each_stream_has_a_lane_and_all_meet():
    available = lanes.Lanes()
    large = [torch.randn(4096, 4096, device="cuda") for _ in range(2)]
    with lanes.usable(available), lanes.side_by_side(2):
        where = lanes.each(lambda x: lanes.here(x), large)
        products = lanes.each(lambda x: (x @ x @ x).sum(), large)
        lanes.meet(products)
        total = products[0] + products[1]
    assert where == available.first(2)
    assert lanes.here(total) == torch.cuda.current_stream()
    expected = sum((x @ x @ x).sum() for x in large)
    torch.testing.assert_close(total, expected)


@needs_gpu
def test_one_stream_stays_where_it_is():
    x = torch.zeros(1, device="cuda")
    with lanes.usable(lanes.Lanes()), lanes.side_by_side(1):
        assert lanes.each(lanes.here, [x]) == [torch.cuda.current_stream()]
