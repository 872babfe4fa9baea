"""The honest baseline of CLINC150: a linear SVM of word and character n-grams."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline, make_union
from sklearn.svm import LinearSVC


def svm(data: Path) -> dict[str, Any]:
    """Fitted on the whole training file, scored on the test file.

    Args:
        data: folder of the Parquet files.
    """
    train, test = (pq.read_table(data / f"clinc150-{part}.parquet").to_pydict() for part in ("train", "test"))
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    model = make_pipeline(make_union(words, characters), LinearSVC())
    start = time.monotonic()
    model.fit(train["text"], train["label"])
    seconds = time.monotonic() - start
    right = np.asarray(model.predict(test["text"])) == np.asarray(test["label"])
    return {
        "run": "text",
        "kind": "baseline",
        "name": "linear SVM on TF-IDF (scikit-learn)",
        "seconds": seconds,
        "accuracy": float(right.mean()),
    }
