"""``python -m plasticity_cl``."""

import sys

from plasticity_cl.cli import main

sys.exit(main())
