"""What TensorBoard is given: every figure once, whatever happens in between."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.progress import Event, Result, Training, Trials
from orchestrator.tracking.tensorboard import FILE, TensorBoard, _records

Figures = dict[str, list[tuple[int, float]]]


def figures(folder: Path) -> Figures:
    """Tag -> (step, value) in the order of the file; a config's values by `hparams/<name>`."""
    found: Figures = {}
    data = (folder / FILE).read_bytes()
    for record, _ in _records(data):
        for value in record.summary.value:
            found.setdefault(value.tag, []).append((record.step, round(value.simple_value, 6)))
    return found


def epoch(number: int, loss: float = 0.5, name: str = "teacher", stage: str = "train") -> Event:
    return Event(stage, "", 0.0, Training(name, "training", number, 3, loss, 1 - loss, "accuracy", 0.1))


def result(number: int, volume: float, name: str = "lr=0.1 model=cnn", latency: float = 2.0) -> Event:
    found = Result(number, name, {"lr": 0.1, "model": "cnn"}, 0.9, 0.01, latency, 1000)
    return Event("search", "", 0.0, Trials(4, metric_name="accuracy", hypervolume=volume, result=found))


def tell(folder: Path, *events: Event) -> None:
    board = TensorBoard(folder)
    for event in events:
        board.show(event)
    board.close()


def test_epochs_results_and_hypervolume(tmp_path: Path) -> None:
    waiting = Event("train", "", 0.0, Training("teacher", "waiting"))
    tell(tmp_path, waiting, epoch(1), epoch(2, 0.25), result(0, 0.3), result(-2, 0.3, "bf16 compiled"))
    assert figures(tmp_path / "train" / "teacher") == {
        "loss": [(1, 0.5), (2, 0.25)],
        "validation/accuracy": [(1, 0.5), (2, 0.75)],
    }
    trial = figures(tmp_path / "search" / "lr=0.1 model=cnn")
    assert trial["result/latency_ms"] == [(0, 2.0)]
    assert set(trial) == {
        *(f"result/{name}" for name in ("accuracy", "drop", "latency_ms", "bytes")),
        "_hparams_/session_start_info",
        "_hparams_/session_end_info",
    }
    assert figures(tmp_path / "search") == {"hypervolume": [(1, 0.3)]}
    assert (tmp_path / "search" / "bf16 compiled").is_dir()


def test_what_is_told_again_is_not_written_again(tmp_path: Path) -> None:
    story = (epoch(1), epoch(2, 0.25), result(0, 0.3), result(1, 0.4, "other"))
    tell(tmp_path, *story)
    files = sorted(tmp_path.rglob(FILE))
    before = [file.read_bytes() for file in files]
    tell(tmp_path, *story)
    assert [file.read_bytes() for file in files] == before
    # It goes on where it stopped.
    tell(tmp_path, epoch(3, 0.125))
    tell(tmp_path, *story, result(2, 0.5, "third"))
    assert figures(tmp_path / "train" / "teacher")["loss"] == [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert figures(tmp_path / "search")["hypervolume"] == [(1, 0.3), (2, 0.4), (3, 0.5)]


def test_a_record_that_was_cut_short_is_cut_off(tmp_path: Path) -> None:
    tell(tmp_path, epoch(1), epoch(2))
    file = tmp_path / "train" / "teacher" / FILE
    file.write_bytes(file.read_bytes()[:-5])
    tell(tmp_path, epoch(2), epoch(3))
    assert figures(file.parent)["loss"] == [(1, 0.5), (2, 0.5), (3, 0.5)]


@pytest.mark.parametrize("tail", [bytes(30), bytes(range(200, 230))])
def test_what_a_power_loss_leaves_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    tell(tmp_path, epoch(1), epoch(2))
    file = tmp_path / "train" / "teacher" / FILE
    file.write_bytes(file.read_bytes()[: -len(tail)] + tail)
    tell(tmp_path, epoch(2), epoch(3))
    assert figures(file.parent)["loss"] == [(1, 0.5), (2, 0.5), (3, 0.5)]


def test_other_figures_take_the_place_of_old_ones(tmp_path: Path) -> None:
    tell(tmp_path, epoch(1), epoch(2), result(0, 0.3), result(1, 0.4, "other"), result(2, 0.5, "third"))
    tell(tmp_path, epoch(1, 0.75), result(0, 0.3), result(1, 0.45, "other", latency=1.0))
    assert figures(tmp_path / "train" / "teacher")["loss"] == [(1, 0.75)]
    assert figures(tmp_path / "search")["hypervolume"] == [(1, 0.3), (2, 0.45)]
    other = figures(tmp_path / "search" / "other")
    assert other["result/latency_ms"] == [(0, 1.0)]
    assert len(other["_hparams_/session_start_info"]) == 1


@pytest.mark.parametrize("first", [1, 2])
def test_epochs_that_are_told_twice_in_one_process_are_the_same_points(tmp_path: Path, first: int) -> None:
    """A worker that died between telling an epoch and saving it, or a trial that another process repeats."""
    again = [epoch(number, 1 / number) for number in range(first, 4)]
    tell(tmp_path, epoch(1, 1.0), epoch(2), *again)
    assert figures(tmp_path / "train" / "teacher")["loss"] == [(1, 1.0), (2, 0.5), (3, 0.333333)]


def test_figures_that_a_record_cannot_hold_are_left_out(tmp_path: Path) -> None:
    tell(tmp_path, epoch(1), epoch(2, 1e50), epoch(3))
    assert figures(tmp_path / "train" / "teacher")["loss"] == [(1, 0.5), (3, 0.5)]


def test_epochs_wait_and_results_do_not(tmp_path: Path) -> None:
    now = [0.0]
    board = TensorBoard(tmp_path, clock=lambda: now[0])
    board.show(epoch(1))
    assert not (tmp_path / "train").exists()
    board.show(result(0, 0.3))
    assert (tmp_path / "search" / FILE).exists()
    now[0] = 3.0
    board.show(epoch(2))
    assert len(figures(tmp_path / "train" / "teacher")["loss"]) == 2


def test_names_become_folders(tmp_path: Path) -> None:
    tell(tmp_path, epoch(1, name="a/../b"), epoch(1, name="x" * 300), epoch(1, name="x" * 299))
    names = sorted(folder.name for folder in (tmp_path / "train").iterdir())
    assert len(names) == 3
    assert names[0] == "a_.._b"


def test_a_folder_that_cannot_be_written_costs_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "search").write_text("not a folder")
    tell(tmp_path, result(0, 0.3), result(1, 0.4))
    assert [record.message[:35] for record in caplog.records] == ["no more figures for TensorBoard: [E"]


def test_a_thousand_trials_cost_little(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    begun = time.process_time()
    for number in range(1000):
        for step in range(1, 6):
            board.show(epoch(step, name=f"trial {number}", stage="search"))
        board.show(result(number, number / 1000, f"trial {number}"))
    board.close()
    spent = time.process_time() - begun
    assert spent < 10, f"{spent:.1f} s for 1,000 trials"
    assert len(figures(tmp_path / "search")["hypervolume"]) == 1000


def test_tensorboard_itself_reads_it(tmp_path: Path) -> None:
    name = "tensorboard.backend.event_processing.event_multiplexer"
    multiplexer = pytest.importorskip(name, reason="tensorboard is not installed")
    tell(tmp_path, epoch(1), epoch(2), result(0, 0.3), result(1, 0.4, "other"))
    tell(tmp_path, epoch(1), epoch(2), epoch(3), result(0, 0.3), result(1, 0.4, "other"))
    found = multiplexer.EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    assert set(found.Runs()) == {"train/teacher", "search", "search/lr=0.1 model=cnn", "search/other"}
    assert [point.step for point in found.Scalars("train/teacher", "loss")] == [1, 2, 3]
    assert [point.value for point in found.Scalars("search", "hypervolume")] == pytest.approx([0.3, 0.4])
    start = found.SummaryMetadata("search/other", "_hparams_/session_start_info")
    assert start.plugin_data.plugin_name == "hparams"
