"""Progress: lines where there is no terminal, a live view where there is one that ends as it began."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.live import LiveView, consumer_for, duration
from orchestrator.progress import Best, Event, LineLog, Progress, Training, Trials
from tests.architecture.modules import ROOT
from tests.pipeline import tiny

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
TEACHER = Training("teacher", "training", 12, 30, 0.0412, 0.981, "accuracy", 5.0)
SEARCH = Trials(
    total=40,
    running=2,
    finished=11,
    failed=1,
    metric_name="accuracy",
    best=Best("p50-lamp-bf16", 0.9812, 0.612, 2.71, True),
    hypervolume=0.41234,
    left_s=185.0,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def view(width: int = 90) -> tuple[LiveView, Clock]:
    clock = Clock()
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=30, color_system=None)
    return LiveView(console, clock), clock


def screen(shown: LiveView, width: int = 90) -> list[str]:
    """What stands there, without what lies behind it."""
    console = Console(file=io.StringIO(), width=width, height=30, color_system=None)
    console.print(shown.render())
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_search_as_it_stands() -> None:
    shown, clock = view()
    shown.show(Event("search", "trial 12 of 40: ...", 61.0, SEARCH, (2.0, 2.0)))
    shown.show(
        Event("search", "", 61.0, Training("p25-l2-fp32", "training", 1, None, 0.5, 0.97, "accuracy", 1))
    )
    clock.now += 5
    try:
        assert screen(shown) == [
            "search  1 min 06 s, about 3 min 00 s left; 2 of 2 cores in use",
            "  trials       ━━━━━━━━━━━━",
            "               2 running, 11 finished, 1 failed of 40",
            "  best         p50-lamp-bf16: accuracy 0.9812, 0.612 ms, 2.71 times as fast",
            "  hypervolume  0.4123",
            "  model        epoch    loss  accuracy  left",
            "  p25-l2-fp32      1  0.5000    0.9700",
        ]
    finally:
        shown.close()


def test_trainings_as_they_stand() -> None:
    shown, _ = view()
    events = [
        Event("train", "", 1.0, Training("teacher", "waiting", epochs=30)),
        Event("train", "", 1.0, Training("small", "waiting", epochs=2)),
        Event("train", "teacher: epoch 12 of 30", 61.0, TEACHER, (3.0, 4.0)),
        Event("train", "", 62.0, Training("small", "training", 2, 2, 0.3, 0.9, "accuracy", 0.1)),
        Event("train", "small: trained", 63.0, Training("small", "trained")),
    ]
    for event in events:
        shown.show(event)
    try:
        assert screen(shown) == [
            "train  1 min 03 s, about 1 min 30 s left; 3 of 4 cores in use",
            "  model       epoch    loss  accuracy        left",
            "  teacher  12 of 30  0.0412    0.9810  1 min 30 s",
            "  small     trained  0.3000    0.9000",
        ]
    finally:
        shown.close()


def test_what_ended_or_failed_is_a_line_and_figures_are_not() -> None:
    shown, _ = view()
    shown.show(Event("data", "reading (embedded)", 0.5))
    shown.show(Event("train", "teacher: epoch 12 of 30", 61.0, TEACHER))
    shown.show(Event("train", "teacher: failed: loss exploded", 62.0, Training("teacher", "failed")))
    worse = Trials(total=4, failed=1, ended="a", ended_badly=True)
    shown.show(Event("search", "trial 1 of 4: a failed: [no] layer is left", 70.0, worse))
    shown.show(Event("search", "trial 2 of 4: b", 71.0, Trials(total=4, finished=1, failed=1, ended="b")))
    shown.show(Event("evaluate", "3 models", 80.0))
    assert isinstance(shown._console.file, io.StringIO)
    written = shown._console.file.getvalue()
    lines = re.findall(r"^.*?(\[ .*s\] .*?)\s*$", written, re.MULTILINE)
    assert lines == [
        "[    0.5s] data      reading (embedded)",
        "[   62.0s] train     teacher: failed: loss exploded",
        "[   70.0s] search    trial 1 of 4: a failed: [no] layer is left",
        "[   80.0s] evaluate  3 models",
    ]
    assert written.rindex(SHOW) > written.rindex(HIDE), "a stage without figures needs no view"
    shown.close()


def test_a_trial_that_ended_leaves_the_list_and_many_are_cut() -> None:
    shown, _ = view()
    shown.show(Event("search", "", 1.0, SEARCH))
    for number in range(12):
        training = Training(f"t{number}", "training", 1, None, 0.1, 0.9, "accuracy", 1.0)
        shown.show(Event("search", "", 2.0, training))
    shown.show(Event("search", "", 3.0, Trials(total=40, ended="t0")))
    lines = screen(shown)
    shown.close()
    assert not [line for line in lines if line.startswith("  t0 ")]
    assert lines[-2].startswith("  t8 ")
    assert lines[-1] == "  and 3 more"
    assert "best         none measured yet" in "\n".join(lines)


def test_durations() -> None:
    assert [duration(value) for value in (0.4, 59.4, 60, 185, 3600, 7620)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "3 min 05 s",
        "1 h 00 min",
        "2 h 07 min",
    ]


def tell(progress: Progress) -> None:
    progress("data", "reading (embedded)")
    progress("train", "", Training("teacher", "waiting", epochs=30))
    progress("train", "teacher: epoch 12 of 30", TEACHER)
    progress("search", "", Trials(total=4, running=2))
    progress("search", "trial 1 of 4: a", SEARCH)


def test_without_a_terminal_every_event_is_a_line_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the environment asks for colours: a file is no terminal."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    with Progress(consumer_for(stream)) as progress:
        tell(progress)
    assert re.sub(r"\[ +\d+\.\ds\]", "[T]", stream.getvalue()) == (
        "[T] data      reading (embedded)\n"
        "[T] train     teacher: epoch 12 of 30\n"
        "[T] search    trial 1 of 4: a\n"
    )


@pytest.mark.parametrize("term", ["dumb", "DUMB", "unknown", "", None])
def test_a_dumb_terminal_gets_lines(term: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TERM", raising=False)
    if term is not None:
        monkeypatch.setenv("TERM", term)
    stream = Terminal()
    with Progress(consumer_for(stream)) as progress:
        tell(progress)
    assert "\x1b" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 3


def test_json_gets_lines_on_a_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(consumer_for(Terminal(), live=False), LineLog)
    assert isinstance(consumer_for(Terminal()), LiveView)


def test_cores_are_asked_once_a_second_and_only_for_figures() -> None:
    asked: list[int] = []
    events: list[Event] = []

    class Keeper:
        def show(self, event: Event) -> None:
            events.append(event)

        def close(self) -> None:
            pass

    def cores() -> tuple[float, float]:
        asked.append(1)
        return 1.0, 2.0

    progress = Progress(Keeper(), cores)
    progress("data", "reading")
    assert not asked
    for _ in range(5):
        progress("train", "", TEACHER)
    assert len(asked) == 1
    assert [event.cores for event in events] == [None, *[(1.0, 2.0)] * 5]


# A real terminal.

CHILD = """
import sys, time
from orchestrator.live import consumer_for
from orchestrator.progress import Progress, Trials
try:
    with Progress(consumer_for()) as progress:
        progress("data", "reading (embedded)")
        progress("search", "trial 1 of 4: a", Trials(total=4, running=1, finished=1))
        time.sleep(float(sys.argv[1]))
        progress("search", "it ends")
except KeyboardInterrupt:
    print("stopped", file=sys.stderr)
    sys.exit(130)
print("done")
"""


class Pty:
    """A command in a terminal of its own, 100 columns wide."""

    def __init__(self, line: list[str], **environment: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self._slave, self._before = slave, termios.tcgetattr(slave)
        dropped = ("NO_COLOR", "COLUMNS", "LINES")
        kept = {name: value for name, value in os.environ.items() if name not in dropped}
        self.written = ""
        self._process = subprocess.Popen(
            line,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            env={**kept, "TERM": "xterm-256color", **environment},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),
        )

    def wait_for(self, text: str, timeout_s: float = 60.0) -> None:
        """Read until the text was written."""
        end = time.monotonic() + timeout_s
        while text not in self.written:
            assert time.monotonic() < end, self.written[-3000:]
            assert self._read(), f"it ended: {self.written[-3000:]}"

    def press(self, keys: bytes) -> None:
        """As typed on its keyboard."""
        os.write(self._master, keys)

    def finish(self, timeout_s: float = 60.0) -> int:
        """Its exit code; the terminal must be as it was, with its cursor."""
        end = time.monotonic() + timeout_s
        try:
            while self._process.poll() is None or select.select([self._master], [], [], 0)[0]:
                assert time.monotonic() < end, self.written[-3000:]
                self._read()
            assert termios.tcgetattr(self._slave) == self._before
            return self._process.returncode
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._slave)
            os.close(self._master)

    def _read(self) -> bool:
        if select.select([self._master], [], [], 0.2)[0]:
            self.written += os.read(self._master, 65536).decode(errors="replace")
            return True
        return self._process.poll() is None


def test_on_a_terminal_the_view_comes_and_goes() -> None:
    child = Pty([sys.executable, "-c", CHILD, "0.6"])
    assert child.finish() == 0
    written = child.written
    assert written.index("reading (embedded)") < written.index(HIDE)
    assert "1 running, 1 finished, 0 failed of 4" in written
    assert "trial 1 of 4: a" not in written, "a figure of the view is no line"
    assert written.rindex(SHOW) > written.rindex(HIDE)
    assert written.rindex("it ends") < written.rindex("done")
    assert written.endswith("done\r\n")


@pytest.mark.slow
def test_ctrl_c_takes_the_view_away_first() -> None:
    child = Pty([sys.executable, "-c", CHILD, "60"])
    child.wait_for("1 running")
    child.press(b"\x03")
    assert child.finish() == 130
    written = child.written
    assert written.rindex(SHOW) > written.rindex(HIDE)
    assert written.rindex("stopped") > written.rindex(SHOW)


def test_no_color_is_honoured() -> None:
    child = Pty([sys.executable, "-c", CHILD, "0.3"], NO_COLOR="1")
    assert child.finish() == 0
    assert HIDE in child.written
    assert not re.search(r"\x1b\[[0-9;]*[34][0-7]m", child.written)


def test_a_dumb_terminal_has_no_view() -> None:
    child = Pty([sys.executable, "-c", CHILD, "0.1"], TERM="dumb")
    assert child.finish() == 0
    assert "\x1b" not in child.written
    assert "trial 1 of 4: a\r\n" in child.written


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_on_a_terminal(tmp_path: Path) -> None:
    """Stopped while it trains, it says how to go on; started again it searches under the view to its end."""
    file = tiny.write(tmp_path / "tiny.yaml", port=1)
    line = [sys.executable, "-m", "orchestrator", "search", str(file), "--store", str(tmp_path / "store")]
    cache = str(tmp_path / "cache")
    first = Pty(line, ORCHESTRATOR_CACHE=cache)
    first.wait_for("1 of 3", 300)
    assert "cores in use" in first.written
    first.press(b"\x03")
    assert first.finish(120) == 130
    assert first.written.rindex("run the same command again to continue") > first.written.rindex(SHOW)
    assert "Traceback" not in first.written
    second = Pty(line, ORCHESTRATOR_CACHE=cache)
    assert second.finish(400) == 0
    assert "4 finished, 0 failed of 4" in second.written
    assert re.search(r"hypervolume  0\.\d{4}", second.written)
    assert second.written.rindex(SHOW) > second.written.rindex(HIDE)
    assert "Traceback" not in second.written
