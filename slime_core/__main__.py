"""`python -m slime_core` is the `slime` command."""

import sys

from slime_core.cli import main

sys.exit(main())
