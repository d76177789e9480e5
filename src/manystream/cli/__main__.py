"""``python -m manystream.cli``, for ``torchrun`` above all."""

import sys

from manystream.cli import main

if __name__ == "__main__":
    sys.exit(main())
