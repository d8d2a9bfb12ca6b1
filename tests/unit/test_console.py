"""Progress in a log file and on a terminal."""

from __future__ import annotations

import io
import re

from rich.console import Console

from embedder.console import Counter, progress


def test_a_line_tells_how_much_is_done_and_when_the_rest_will_be():
    counter = Counter("label", 2000, Console(file=io.StringIO()), None)
    assert counter.line() == "label: 0/2,000 rows, 0.0 rows/s, ETA unknown"
    counter._began -= 10
    counter.advance(1000)
    assert re.fullmatch(r"label: 1,000/2,000 rows, (100\.0|9\d\.\d) rows/s, ETA 0:1[01]", counter.line())


def test_rows_done_before_say_nothing_of_the_rate():
    counter = Counter("train", 2000, Console(file=io.StringIO()), None)
    counter.skip(1000)
    counter._began -= 10
    counter.advance(100)
    assert re.fullmatch(r"train: 1,100/2,000 rows, (10\.0|9\.\d) rows/s, ETA 1:3\d", counter.line())


def test_the_time_before_says_nothing_of_the_rate_either():
    counter = Counter("train", 2000, Console(file=io.StringIO()), None)
    counter._began -= 1000
    counter.skip(1)
    counter._began -= 10
    counter.advance(100)
    assert re.fullmatch(r"train: 101/2,000 rows, (10\.0|9\.\d) rows/s, ETA 3:\d\d", counter.line())


def test_a_bar_begins_anew_too():
    out = io.StringIO()
    with progress("train", 30, Console(file=out, force_terminal=True, width=110)) as counter:
        counter.skip(20)
        assert counter._bar is not None and counter._bar.tasks[0].speed is None
        counter.advance(10)
    assert "20/30" in out.getvalue() and "30/30" in out.getvalue()


def test_a_log_file_gets_a_line_now_and_then():
    out = io.StringIO()
    with progress("mine", 30, Console(file=out, width=110)) as counter:
        counter.advance(10)
        assert out.getvalue() == ""
        counter._line_at -= Counter.LINE_EVERY_S
        counter.advance(10)
        counter.advance(10)
    assert out.getvalue().startswith("mine: 20/30 rows")
    assert out.getvalue().count("\n") == 1
    assert counter.count == 30


def test_a_terminal_gets_a_bar():
    out = io.StringIO()
    with progress("mine", 30, Console(file=out, force_terminal=True, width=110)) as counter:
        counter.advance(30)
    assert "30/30" in out.getvalue()


def test_whoever_observes_hears_every_count():
    heard = []
    with progress("label", 10, Console(file=io.StringIO()), heard.append) as counter:
        counter.skip(3)
        counter.advance(2)
        counter.advance(5)
    assert heard == [3, 5, 10]
