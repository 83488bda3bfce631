"""``python -m sewsnn.cli``."""

import sys

from sewsnn.cli import main

sys.exit(main())
