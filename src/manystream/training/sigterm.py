"""SIGTERM as an exception that ends a command or a run with its status; needs no trainer."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TERMINATED = 128 + signal.SIGTERM
"""Exit status, by the shell's convention."""


class Terminated(SystemExit):
    """SIGTERM ended a run. Where nobody catches this, the process ends with status 143.

    Attributes:
        message: where the run ended, and how to go on.
    """

    def __init__(self, message: str) -> None:
        super().__init__(TERMINATED)
        self.message = message


@contextmanager
def sigterm_handled(handler: Callable[..., None] | signal.Handlers) -> Iterator[None]:
    """Have SIGTERM handled so for a while; where the caller ignores it, it stays ignored."""
    before = signal.getsignal(signal.SIGTERM)
    ignored = before in (signal.SIG_IGN, None)
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
