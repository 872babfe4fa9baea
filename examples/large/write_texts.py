"""Text Parquet of many files: FOLDER/train/part-00000.parquet, ... and a file for each other part.

python examples/large/write_texts.py FOLDER                       # made up, learnable, 40 MB a million rows
python examples/large/write_texts.py FOLDER --clinc150 DOWNLOADS  # the CLINC150 files of examples/text.yaml
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CLASSES = 20
OTHERS = ("validation", "calibration", "contract", "test")
GROUP_ROWS = 5_000
"""Small row groups in mixed order: workers read whole ones, and mix rows within a window."""
_SYLLABLES = ("ba", "do", "fi", "gu", "ke", "lo", "mi", "nu", "pa", "ri", "so", "tu")


def made_up(rows: int, seed: int) -> pa.Table:
    """Texts of 6 to 12 words, a third of which tell the class; half of these are a neighbour's, too."""
    random = np.random.default_rng(seed)
    words = np.array([a + b + c for a in _SYLLABLES for b in _SYLLABLES for c in _SYLLABLES])
    telling, common = words[: 16 * CLASSES].reshape(2 * CLASSES, 8), words[16 * CLASSES :]
    labels = random.integers(0, CLASSES, rows)
    texts = []
    for label in labels:
        length = random.integers(6, 13)
        own = random.random(length) < 1 / 3
        groups = (2 * label + random.integers(0, 4, length)) % (2 * CLASSES)
        chosen = np.where(own, telling[groups, random.integers(0, 8, length)], random.choice(common, length))
        texts.append(" ".join(chosen))
    return pa.table({"text": texts, "label": [f"topic {label:02d}" for label in labels]})


def write(table: pa.Table, path: Path) -> None:
    """One file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=GROUP_ROWS)


def write_made_up(folder: Path, files: int, rows: int, seed: int) -> None:
    """Train files one after another, so that memory holds one; the other parts have as many rows as each."""
    for number in range(files):
        write(made_up(rows, seed + number), folder / "train" / f"part-{number:05d}.parquet")
    for number, name in enumerate(OTHERS):
        write(made_up(rows, seed + files + number), folder / f"{name}.parquet")


def write_clinc150(folder: Path, source: Path, files: int, seed: int) -> None:
    """The train file cut into many, and the validation file into validation, calibration and contract."""
    random = np.random.default_rng(seed)

    def shuffled(part: str) -> pa.Table:
        table = pq.read_table(source / f"clinc150-{part}.parquet")
        found = pa.table({"text": table["text"], "label": table["intent"]})
        return found.take(random.permutation(len(found)))

    def cut(table: pa.Table, pieces: int) -> list[pa.Table]:
        bounds = np.linspace(0, len(table), pieces + 1).astype(int)
        return [table.slice(begin, end - begin) for begin, end in pairwise(bounds.tolist())]

    for number, piece in enumerate(cut(shuffled("train"), files)):
        write(piece, folder / "train" / f"part-{number:05d}.parquet")
    for name, piece in zip(OTHERS, [*cut(shuffled("validation"), 3), shuffled("test")], strict=True):
        write(piece, folder / f"{name}.parquet")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=16, help="train files")
    parser.add_argument("--rows", type=int, default=500, help="rows of a made-up file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clinc150", type=Path, metavar="FOLDER", help="cut these files instead")
    given = parser.parse_args()
    if given.clinc150 is None:
        write_made_up(given.folder, given.files, given.rows, given.seed)
    else:
        write_clinc150(given.folder, given.clinc150, given.files, given.seed)


if __name__ == "__main__":
    main()
