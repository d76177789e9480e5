"""Data sets of several streams: tables of samples, checks, and loaders of compact batches."""

from manystream.extras import train_extra

with train_extra():
    import PIL  # noqa: F401 - what reads images is of the extra; here it is missed first

from manystream.data.arrays import arrays
from manystream.data.checks import check
from manystream.data.feeding import TrainingData, loader, loaders, training_data
from manystream.data.folder import folder, unlabelled
from manystream.data.manifest import manifest
from manystream.data.nyu import nyu
from manystream.data.opening import open_data
from manystream.data.options import DataOptions
from manystream.data.prepared import prepare_split, prepared
from manystream.data.preprocessing import Preprocessing
from manystream.data.scenes import scenes
from manystream.data.splitting import HeldOut
from manystream.data.streams import StreamSpec
from manystream.data.sun_rgbd import sun_rgbd
from manystream.data.table import SampleTable

__all__ = [
    "DataOptions",
    "HeldOut",
    "Preprocessing",
    "SampleTable",
    "StreamSpec",
    "TrainingData",
    "arrays",
    "check",
    "folder",
    "loader",
    "loaders",
    "manifest",
    "nyu",
    "open_data",
    "prepare_split",
    "prepared",
    "scenes",
    "sun_rgbd",
    "training_data",
    "unlabelled",
]
