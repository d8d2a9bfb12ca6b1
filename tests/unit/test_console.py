"""Progress in a log file and on a terminal, by a clock of the tests' own."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from embedder import console
from embedder.console import Counter, exit_on_error, progress, show_table


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """The clock of embedder.console."""
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


@pytest.fixture
def counter(clock):
    """Of 2,000, into a log."""
    return Counter("train", 2000, Progress(console=Console(file=io.StringIO()), disable=True))


def test_progress_line_tells_how_much_is_done_and_when_the_rest_will_be(clock, counter):
    assert counter.line() == "train: 0/2,000, 0.0/s, ETA unknown"
    clock.now += 10
    counter.advance(1000)
    assert counter.line() == "train: 1,000/2,000, 100.0/s, ETA 0:10"


def test_progress_rate_leaves_out_rows_done_before(clock, counter):
    counter.skip(1000)
    clock.now += 10
    counter.advance(100)
    assert counter.line() == "train: 1,100/2,000, 10.0/s, ETA 1:30"


def test_progress_rate_leaves_out_the_time_before(clock, counter):
    clock.now += 1000
    counter.skip(1)
    clock.now += 10
    counter.advance(100)
    assert counter.line() == "train: 101/2,000, 10.0/s, ETA 3:09"


def test_progress_bar_leaves_out_rows_done_before():
    out = io.StringIO()
    with progress("train", 30, Console(file=out, force_terminal=True, width=110)) as counter:
        counter.skip(20)
        assert counter._bar.tasks[0].speed is None
        counter.advance(10)
    assert "20/30" in out.getvalue() and "30/30" in out.getvalue()


def test_progress_writes_a_line_to_a_log_file_now_and_then(clock):
    out = io.StringIO()
    with progress("mine", 30, Console(file=out, width=110)) as counter:
        counter.advance(10)
        assert out.getvalue() == ""
        clock.now += Counter.LINE_EVERY_S
        counter.advance(10)
        counter.advance(10)
    assert out.getvalue() == "mine: 20/30, 2.0/s, ETA 0:05\n"
    assert counter.count == 30


def test_progress_draws_a_bar_on_a_terminal():
    out = io.StringIO()
    with progress("mine", 30, Console(file=out, force_terminal=True, width=110)) as counter:
        counter.advance(30)
    assert "30/30" in out.getvalue()


def test_progress_tells_its_observer_every_count():
    heard = []
    with progress("label", 10, Console(file=io.StringIO()), heard.append) as counter:
        counter.skip(3)
        counter.advance(2)
        counter.advance(5)
    assert heard == [3, 5, 10]


def table() -> Table:
    made = Table("task", "measure", "n", title="gains", caption="better is more")
    made.add_row("qa", "ndcg@10", "30")
    made.add_row("", "perplexity [95 %]", "")
    return made


AS_LINES = ["gains", "qa: measure ndcg@10, n 30", "qa: measure perplexity [95 %]", "better is more"]


@pytest.mark.parametrize(
    ("console", "is_table"),
    [
        (Console(file=io.StringIO(), width=200), False),
        (Console(file=io.StringIO(), force_terminal=True, width=20), False),
        (Console(file=io.StringIO(), force_terminal=True, width=200), True),
    ],
    ids=["log", "narrow", "terminal"],
)
def test_table_becomes_lines_where_it_does_not_fit_or_there_is_no_terminal(console, is_table):
    show_table(console, table())
    printed = console.file.getvalue().splitlines()
    assert (printed == AS_LINES) is not is_table
    assert is_table is any("ndcg@10" in line and "30" in line and "measure" not in line for line in printed)


@pytest.mark.parametrize(
    ("error", "further", "told"),
    [
        (FileNotFoundError(2, "No such file or directory", "/a"), (OSError,), "No such file or directory: '/a'"),
        (PermissionError(13, "Permission denied", "/a"), (), "/a: Permission denied; correct the path, or give"),
        (OSError(36, "File name too long", "/a"), (), "/a: File name too long; correct the path"),
    ],
)
def test_error_of_the_system_that_a_command_names_or_a_user_can_put_right_is_one_line(capsys, error, further, told):
    with pytest.raises(SystemExit, match="2"), exit_on_error(*further):
        raise error
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("error: ") and told in line


def test_error_of_the_system_that_nobody_names_keeps_its_traceback():
    with pytest.raises(FileNotFoundError), exit_on_error():
        raise FileNotFoundError(2, "No such file or directory", "/a")
