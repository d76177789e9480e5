"""Networks on several image streams that survive a missing sensor and train in less memory."""

from manystream import functional, layers, models, tasks
from manystream.batch import StreamBatch
from manystream.dropout import ModalityDropout
from manystream.graphs import GraphedStep
from manystream.model import StreamModel, create_model, load_model
from manystream.models import StreamResNet
from manystream.presence import Presence

__version__ = "0.1.0"

__all__ = [
    "GraphedStep",
    "ModalityDropout",
    "Presence",
    "StreamBatch",
    "StreamModel",
    "StreamResNet",
    "create_model",
    "functional",
    "layers",
    "load_model",
    "models",
    "tasks",
]
