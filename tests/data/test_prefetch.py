import threading
import time

import pytest

from manystream.data.loader import prefetch
from tests.data.builders import reading_threads


@pytest.mark.parametrize("num_threads", [1, 2, 4])
@pytest.mark.parametrize("number", [0, 1, 30])
def test_what_is_read_arrives_in_order(num_threads, number):
    def slow(key):
        time.sleep(0.001 * (key % 3))
        return key, threading.current_thread()

    found = list(prefetch(slow, range(number), num_threads))
    assert [key for key, _ in found] == list(range(number))
    assert threading.current_thread() not in {thread for _, thread in found}
    assert not reading_threads()


def test_keys_are_asked_for_here_and_not_far_ahead():
    asked = []

    def keys():
        for key in range(30):
            asked.append(threading.current_thread())
            yield key

    reading = prefetch(str, keys(), num_threads=2)
    assert asked == []
    for taken in range(1, 11):
        next(reading)
        assert len(asked) == taken + 4
    assert set(asked) == {threading.current_thread()}


def test_an_error_arrives_as_it_is_and_where_it_belongs():
    def inverse(key):
        return 1 / (key - 2)

    reading = prefetch(inverse, range(30), num_threads=2)
    assert [next(reading), next(reading)] == [-0.5, -1]
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        next(reading)
    assert not reading_threads()


def test_an_error_of_the_keys():
    def keys():
        yield 1
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(prefetch(str, keys(), num_threads=2))
    assert not reading_threads()


def test_whoever_stops_early_stops_the_threads():
    read = []
    reading = prefetch(read.append, range(1000), num_threads=2)
    next(reading)
    assert reading_threads()
    del reading
    assert not reading_threads()
    assert len(read) <= 5
