"""The states of all random number generators that training draws from."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """States of Python's, NumPy's and torch's generators, that of this process's GPU included."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002  # what users draw from
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go on where :func:`random_state` was taken."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])


_SEEDS_FOR_WORKERS = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Give the caller's generators back as they were, and Lightning's word to loader processes."""
    before, seed = random_state(), torch.initial_seed()
    device = None if before["cuda"] is None else torch.cuda.current_device()
    words = {name: os.environ.get(name) for name in _SEEDS_FOR_WORKERS}
    try:
        yield
    finally:
        set_random_state({**before, "cuda": None})
        if device is not None:
            torch.cuda.set_rng_state(before["cuda"], device)
        elif torch.cuda.is_initialized():  # it would have begun with this seed
            torch.cuda.manual_seed_all(seed)
        for name, word in words.items():
            os.environ.pop(name, None)
            if word is not None:
                os.environ[name] = word
