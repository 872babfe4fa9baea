"""Batch inference: answers like those of the walk in this process, resumed, and errors of single files."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from orchestrator.config.ensemble import Spec
from orchestrator.ensemble.tree import predict
from orchestrator.errors import ConfigError, DataError, NotFoundError
from orchestrator.pipeline import predicting
from orchestrator.pipeline.predicting import Columns, Job, Worker, predict_files
from orchestrator.runtime.execute import load
from orchestrator.store.store import Store
from tests.deployments.toys import FEATURES, IMAGES, in_process, open_store
from tests.jobs.files import column, image_file, table_file


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Spec]]:
    store, specs = open_store(tmp_path_factory.mktemp("predict"))
    for spec in specs:
        store.set_ref(f"toy/{spec.name}", store.put_spec(spec))
    return store, {spec.name: spec for spec in specs}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Without Ray: a worker of this process does all files; those that it was given."""
    given: list[str] = []

    def work(job: Job, _spec: Any, pending: Any, _workers: Any) -> Any:
        worker = Worker(job)
        for source, target in pending:
            given.append(source.name)
            found = worker({"source": np.array([str(source)]), "target": np.array([str(target)])})
            yield {name: values[0] for name, values in found.items()}

    monkeypatch.setattr(predicting, "_work", work)
    return given


def test_images_are_answered_like_in_this_process(
    served: tuple[Store, dict[str, Spec]],
    here: list[str],  # noqa: ARG001
    tmp_path: Path,
) -> None:
    store, specs = served
    image_file(tmp_path / "in" / "a.parquet")
    image_file(tmp_path / "in" / "deep" / "b.parquet", IMAGES[:5])
    found = predict_files(
        "toy/cascade",
        input=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        store=str(store.root),
        columns=Columns(keep=("number",)),
    )
    assert found == {"files": 2, "skipped": 0, "rows": len(IMAGES) + 5, "degraded": 0}
    expected = in_process(store, specs["cascade"], IMAGES).probs
    assert expected is not None
    out = tmp_path / "out" / "a.parquet"
    assert pq.read_schema(out).names == ["number", "label", "probabilities", "degraded"]
    np.testing.assert_allclose(column(out, "probabilities"), expected, atol=1e-6)
    assert column(out, "label").tolist() == [str(best) for best in expected.argmax(axis=1)]
    assert column(out, "number").tolist() == list(range(len(IMAGES)))
    assert not column(out, "degraded").any()
    np.testing.assert_allclose(
        column(tmp_path / "out" / "deep" / "b.parquet", "probabilities"), expected[:5], atol=1e-6
    )


def test_a_table_of_features_gives_values(
    served: tuple[Store, dict[str, Spec]],
    here: list[str],  # noqa: ARG001
    tmp_path: Path,
) -> None:
    store, specs = served
    file = table_file(tmp_path / "rows.parquet")
    out = tmp_path / "out"
    given: dict[str, Any] = {"input": str(file), "output": str(out), "store": str(store.root)}
    with pytest.raises(DataError, match=r"do not fit the ensemble \(number, f0, .*float32 \[6\]"):
        predict_files("toy/table", **given)
    assert list(out.iterdir()) == []
    predict_files("toy/table", columns=Columns(ignore=("number",)), **given)
    expected = in_process(store, specs["table"], FEATURES).outputs
    np.testing.assert_allclose(column(out / "rows.parquet", "values"), expected, rtol=1e-5, atol=1e-5)
    predict_files("toy/table", columns=Columns(features=("f4", "f3", "f2", "f1", "f0")), **given)
    turned = in_process(store, specs["table"], np.ascontiguousarray(FEATURES[:, ::-1])).outputs
    np.testing.assert_allclose(column(out / "rows.parquet", "values"), turned, rtol=1e-5, atol=1e-5)


def test_only_what_is_not_finished_is_done_again(
    served: tuple[Store, dict[str, Spec]], here: list[str], tmp_path: Path
) -> None:
    store, _ = served
    first, second = (image_file(tmp_path / "in" / f"{name}.parquet", IMAGES[:3]) for name in "ab")
    given: dict[str, Any] = {
        "input": str(tmp_path / "in"),
        "output": str(tmp_path / "out"),
        "store": str(store.root),
    }
    predict_files("toy/mix", **given)
    assert here == ["a.parquet", "b.parquet"]
    assert predict_files("toy/mix", **given)["skipped"] == 2
    (tmp_path / "out" / "b.parquet").unlink()
    assert predict_files("toy/mix", **given)["rows"] == 3
    os.utime(first, ns=(1, 1))
    predict_files("toy/mix", **given)
    predict_files("toy/average", **given)
    assert here[2:] == ["b.parquet", "a.parquet", "a.parquet", "b.parquet"]
    assert second.exists()


def test_a_damaged_file_does_not_stop_the_others(
    served: tuple[Store, dict[str, Spec]], here: list[str], tmp_path: Path
) -> None:
    store, _ = served
    image_file(tmp_path / "in" / "a.parquet", IMAGES[:3])
    (tmp_path / "in" / "b.parquet").write_bytes(b"no Parquet")
    rows = FEATURES.copy()
    rows[2, 1] = np.nan
    table_file(tmp_path / "in" / "c.parquet", rows)
    image_file(tmp_path / "in" / "d.parquet", IMAGES[:2])
    with pytest.raises(DataError, match=r"2 of 4 files are not answered; .*b\.parquet: cannot read as"):
        predict_files(
            "toy/mix", input=str(tmp_path / "in"), output=str(tmp_path / "out"), store=str(store.root)
        )
    assert here == ["a.parquet", "b.parquet", "c.parquet", "d.parquet"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.parquet", "d.parquet"]
    with pytest.raises(DataError, match=r"row 2 of c\.parquet has a missing .* column 'f1'"):
        predict_files(
            "toy/table",
            input=str(tmp_path / "in" / "c.parquet"),
            output=str(tmp_path / "out"),
            store=str(store.root),
            columns=Columns(ignore=("number",)),
        )


def test_damage_of_the_output_is_of_its_file_alone(
    served: tuple[Store, dict[str, Spec]],
    here: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("a", "b", "c"):
        image_file(tmp_path / "in" / f"{name}.parquet", IMAGES[:3])
    out = tmp_path / "out"
    given: dict[str, Any] = {"input": str(tmp_path / "in"), "output": str(out), "store": str(served[0].root)}
    predict_files("toy/mix", **given)
    (out / "b.parquet").write_bytes(b"")  # as a power cut leaves it
    assert predict_files("toy/mix", **given) == {"files": 3, "skipped": 2, "rows": 3, "degraded": 0}
    with pytest.raises(DataError, match=r"a column to keep is not in a\.parquet: none\. it has \['image'"):
        predict_files("toy/mix", columns=Columns(keep=("none",)), **given)

    really = os.replace

    def replaced(part: Path, target: Path) -> None:
        if Path(target).name == "b.parquet":
            raise OSError(errno.ENOSPC, "No space left on device", str(part))
        really(part, target)

    monkeypatch.setattr(os, "replace", replaced)
    here.clear()
    with pytest.raises(DataError, match=r"1 of 3 files are not answered; .*b\.parquet: no space is left"):
        predict_files("toy/average", **given)
    assert here == ["a.parquet", "b.parquet", "c.parquet"]


@pytest.mark.parametrize("error", [DataError("broken"), RuntimeError("shapes cannot be multiplied")])
def test_rows_without_a_member_are_marked(
    error: Exception,
    served: tuple[Store, dict[str, Spec]],
    here: list[str],  # noqa: ARG001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, specs = served
    mix: Any = specs["average"].tree
    spec = Spec(name="some", tree=mix.model_copy(update={"quorum": 2}), signature=specs["average"].signature)
    lost = mix.members[0]

    def failing(store: Store, digest: str, *more: Any, **options: Any) -> Any:
        def fail(_: Any) -> Any:
            raise error

        return fail if digest == lost.digest else load(store, digest, *more, **options)

    monkeypatch.setattr(predicting, "load", failing)
    image_file(tmp_path / "in.parquet", IMAGES[:3])
    found = predict_files(
        store.put_spec(spec),
        input=str(tmp_path / "in.parquet"),
        output=str(tmp_path / "out"),
        store=str(store.root),
    )
    assert found["degraded"] == 3
    assert column(tmp_path / "out" / "in.parquet", "degraded").all()


def test_what_is_refused(served: tuple[Store, dict[str, Spec]], here: list[str], tmp_path: Path) -> None:
    store = str(served[0].root)
    with pytest.raises(DataError, match="no Parquet file is there"):
        predict_files("toy/mix", input=str(tmp_path), output=str(tmp_path / "out"), store=store)
    file = image_file(tmp_path / "in" / "a.parquet", IMAGES[:3])
    for source, target in ((file.parent, file.parent / "out"), (file, file.parent)):
        with pytest.raises(ConfigError, match="must lie outside of the input"):
            predict_files("toy/mix", input=str(source), output=str(target), store=store)
    for kept in ("label", "probabilities", "degraded"):
        columns = Columns(keep=("number", kept))
        with pytest.raises(ConfigError, match=f"a kept column has the name of an answer's: {kept}"):
            predict_files("toy/mix", input=str(file), output=str(tmp_path), store=store, columns=columns)
    with pytest.raises(NotFoundError):
        predict_files("toy/none", input=str(file), output=str(tmp_path / "out"), store=store)
    assert here == []


def test_a_job_without_an_end_leaves_no_half_file(
    served: tuple[Store, dict[str, Spec]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, specs = served
    source = image_file(tmp_path / "in.parquet", np.concatenate([IMAGES] * 50))
    job = Job(str(store.root), store.put_spec(specs["mix"]), Columns(), ())
    worker = Worker(job)
    calls = []

    def stop(*given: Any, **options: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict(*given, **options)

    monkeypatch.setattr(predicting, "predict", stop)
    with pytest.raises(KeyboardInterrupt):
        worker.answer_file(source, tmp_path / "out" / "in.parquet")
    assert len(calls) == 2
    assert list((tmp_path / "out").iterdir()) == []
    assert job.made_by(source) != replace(job, columns=Columns(keep=("number",))).made_by(source)
