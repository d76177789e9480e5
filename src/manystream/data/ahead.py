"""Reading ahead in threads, for what is copied rather than decoded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Batch = TypeVar("Batch")

# As many as DataLoader has a worker process read ahead.
_AHEAD_PER_THREAD = 2


def read_ahead(
    read: Callable[[Key], Batch], keys: Iterable[Key], num_threads: int
) -> Iterator[Batch]:
    """Read in threads, and give what was read in the order of the keys.

    A batch from a worker process travels through shared memory that is made, filled, copied and
    given back each time, which takes longer than a copy out of a memory map; a thread leaves it
    where it is to be used. Whoever stops early stops the threads.

    Args:
        read: called in the threads; it should leave Python to the caller for most of its time.
        keys: what to read, asked for in the caller's own thread, up to twice as many ahead as
            there are threads.
        num_threads: number of threads.

    Raises:
        Exception: what ``read`` raised, in the place of what it was to read.

    Example:
        >>> list(read_ahead(abs, [-3, 1, -2], num_threads=2))
        [3, 1, 2]
    """
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="manystream-read")
    pending: deque[Future[Batch]] = deque()
    try:
        for key in keys:
            pending.append(pool.submit(read, key))
            if len(pending) > _AHEAD_PER_THREAD * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
