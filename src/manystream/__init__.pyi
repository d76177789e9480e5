from manystream import data as data
from manystream import evaluation as evaluation
from manystream import functional as functional
from manystream import graphs as graphs
from manystream import layers as layers
from manystream import memory as memory
from manystream import models as models
from manystream import tasks as tasks
from manystream import training as training
from manystream.batch import StreamBatch as StreamBatch
from manystream.dropout import ModalityDropout as ModalityDropout
from manystream.graphs import GraphedStep as GraphedStep
from manystream.model import StreamModel as StreamModel
from manystream.model import create_model as create_model
from manystream.model import load_model as load_model
from manystream.models import StreamResNet as StreamResNet
from manystream.presence import Presence as Presence

__version__: str
