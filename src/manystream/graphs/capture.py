"""Where and how work is captured: a failed capture leaves the process as it was."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from functools import cache

import torch

from manystream.functional.lanes import Lanes

_RELAXED = 2
"""``CU_STREAM_CAPTURE_MODE_RELAXED``: forbids nothing."""


class CapturedGraph(torch.cuda.CUDAGraph):
    """A :class:`torch.cuda.CUDAGraph` that can be captured in vain.

    A capture breaks when its work meets the host, or when an error leaves lanes behind that have
    not come back to the stream it began in. Ending it is then refused by CUDA, and torch stops
    halfway: the generator would believe that it is still being captured and refuse every random
    number of the process, and the allocator would neither give memory back nor reuse what several
    streams have read.
    """

    def capture_end(self) -> None:
        """End the capture; a broken one is ended as an empty one, and the error still raised."""
        try:
            super().capture_end()
        except RuntimeError:
            if not self._has_ended():
                self._end_empty()
            raise

    def _has_ended(self) -> bool:
        try:
            self.pool()
        except RuntimeError:  # no capture has been ended
            return False
        return True

    def _end_empty(self) -> None:
        """Have torch do all that it does at the end of a capture.

        The refusal has taken the stream out of the broken capture; a new one, which torch knows
        nothing of, takes its place.
        """
        _begin_capture(torch.cuda.current_stream())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
            super().capture_end()


def _begin_capture(stream: torch.cuda.Stream) -> None:
    driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    status = driver.cuStreamBeginCapture_v2(ctypes.c_void_p(stream.cuda_stream), _RELAXED)
    if status:
        raise RuntimeError(f"a broken CUDA capture cannot be ended: CUDA error {status}")


@cache
def beside(device: int) -> tuple[torch.cuda.Stream, Lanes | None]:
    """Return the stream of a device's captures, and its lanes: libraries keep memory for each."""
    return torch.cuda.Stream(device), Lanes() if _memory_of_lanes_is_reused() else None


@cache
def _memory_of_lanes_is_reused() -> bool:
    """Ask the allocator to hand out again, in a capture, what several CUDA streams have read.

    Otherwise all of that would stay until the capture ends. Settings begin anew each time they are
    given, so what the environment says is said again.
    """
    said = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF")
    settings = [said, "graph_capture_record_stream_reuse:True"]
    try:
        torch._C._accelerator_setAllocatorSettings(",".join(filter(None, settings)))
    except (AttributeError, RuntimeError, ValueError):
        return False
    return True
