"""``python -m chordflow``."""

import sys

from chordflow.cli import main

sys.exit(main())
