from manystream.training.batch_size import find_batch_size as find_batch_size
from manystream.training.distributed import average_gradients as average_gradients
from manystream.training.fit import fit as fit
from manystream.training.history import History as History
from manystream.training.options import FitOptions as FitOptions
from manystream.training.out_of_memory import StepOutOfMemory as StepOutOfMemory
