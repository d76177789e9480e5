"""Data sets of several streams: tables of samples, checks, and loaders of compact batches."""

from manystream.lazy import load_when_asked

_MODULES = {
    "Augmentation": "options",
    "DataOptions": "options",
    "HeldOut": "splitting",
    "Preprocessing": "preprocessing",
    "SampleTable": "table",
    "StreamSpec": "streams",
    "TrainingData": "feeding",
    "arrays": "arrays",
    "check": "checks",
    "folder": "folder",
    "loader": "feeding",
    "loaders": "feeding",
    "manifest": "manifest",
    "nyu": "nyu",
    "open_data": "opening",
    "prepare_split": "prepared",
    "prepared": "prepared",
    "scenes": "scenes",
    "sun_rgbd": "sun_rgbd",
    "training_data": "feeding",
    "unlabelled": "folder",
}

__all__ = [*_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]

load_when_asked(__name__, _MODULES)
