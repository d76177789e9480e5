"""Settings of every test run: the same hypothesis examples each time, one thread."""

import os
import tempfile

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel is imported

from hypothesis import HealthCheck, settings

# What is kept of the data that tests write is no business of the user's cache folder.
_CACHE = tempfile.TemporaryDirectory(prefix="manystream-cache-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name

settings.register_profile(
    "manystream",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("manystream")
# The tests' tensors are too small to share among threads; more of them may find what one hides.
torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))
