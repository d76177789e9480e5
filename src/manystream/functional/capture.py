"""A CUDA graph whose capture, where it fails, leaves the process as it was."""

from __future__ import annotations

import ctypes
import sys
import warnings

import torch

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
