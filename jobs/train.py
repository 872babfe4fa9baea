"""Train the models of a run file."""

import sys
from pathlib import Path

# As a script of `ray job submit` this file is not part of an installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.stage import main

if __name__ == "__main__":
    main("train", __doc__)
