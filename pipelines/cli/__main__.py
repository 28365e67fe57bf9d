"""`python -m pipelines.cli` is `groupvit`."""

import sys

from pipelines.cli.main import main

sys.exit(main())
