"""Answer the rows of Parquet files with a fitted ensemble, on all nodes of the cluster."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# As a script of `ray job submit` this file is not part of an installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.stage import work
from orchestrator.pipeline.predicting import Columns, predict_files


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def main() -> None:
    """Parse the arguments and predict. Submitted again, finished files are skipped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", help="ref of an ensemble, like digits/mix")
    parser.add_argument("--input", required=True, help="Parquet file, or a folder of them")
    parser.add_argument("--output", required=True, help="folder; one file for each input file")
    parser.add_argument("--store", help="absolute path or URI of the store [default: $ORCHESTRATOR_STORE]")
    parser.add_argument("--column", help="of images or tensors, where it is not the only one")
    parser.add_argument(
        "--features", type=_names, default=(), metavar="A,B", help="numeric columns, in order"
    )
    parser.add_argument("--ignore", type=_names, default=("label",), metavar="A,B", help="no features")
    parser.add_argument("--keep", type=_names, default=(), metavar="A,B", help="columns to copy")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="PKG.MOD:FN", help="factory of a model"
    )
    parser.add_argument("--workers", type=int, help="files at once [default: as many as there are cores for]")
    arguments = vars(parser.parse_args())
    columns = Columns(*(arguments.pop(name) for name in ("column", "features", "ignore", "keep")))
    work(lambda: predict_files(**arguments, columns=columns))


if __name__ == "__main__":
    main()
