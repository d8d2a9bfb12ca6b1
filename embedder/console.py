"""What commands print to: the console, progress as a bar or lines, and the one line that an error ends with."""

from __future__ import annotations

import errno
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from embedder.credentials import masked
from embedder.errors import EmbedderError

NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}
"""Errors of a path, of which the user alone knows the right one."""
MOST_COLUMNS = 10_000
"""Columns in which every table fits: what one wants is measured within them."""


class Counter:
    """Counts finished rows of one piece of work; `advance` is called as they finish."""

    LINE_EVERY_S = 10.0

    def __init__(self, label: str, total: int, bar: Progress, observe: Callable[[int], None] | None = None) -> None:
        self.label, self.total, self.count, self.note = label, total, 0, ""
        self._skipped = 0
        self._left_s: float | None = None
        self._bar, self._observe = bar, observe
        self._task = bar.add_task(label, total=total, note="")
        self._began = self._line_at = time.monotonic()

    def skip(self, rows: int) -> None:
        """`rows` were done before, or while the work got going: they say nothing of the rate, whose clock restarts."""
        self.count += rows
        self._skipped, self._began = self.count, time.monotonic()
        self._bar.reset(self._task, completed=self.count)
        if self._observe is not None:
            self._observe(self.count)

    def advance(self, rows: int, note: str = "", left_s: float | None = None) -> None:
        """`rows` more are done; `note` replaces what stands behind the counts.

        `left_s`: seconds that the rest takes, where the caller knows better than the rate of rows.
        """
        self.count += rows
        self.note, self._left_s = note, left_s
        if self._observe is not None:
            self._observe(self.count)
        self._bar.update(self._task, completed=self.count, note=note)
        # A bar that is not shown gives way to a line now and then, so that a log file does not grow with every row.
        if self._bar.disable and time.monotonic() - self._line_at >= self.LINE_EVERY_S:
            self._line_at = time.monotonic()
            self._bar.console.print(self.line())

    def line(self) -> str:
        """The state as one line of text."""
        # Not 0, because the first line may be printed within the resolution of the clock.
        elapsed = max(time.monotonic() - self._began, 1e-9)
        rate = (self.count - self._skipped) / elapsed
        left = (self.total - self.count) / rate if rate else float("inf")
        if self._left_s is not None:
            left = self._left_s
        eta = f"{int(left) // 60}:{int(left) % 60:02d}" if left != float("inf") else "unknown"
        note = f"; {self.note}" if self.note else ""
        return f"{self.label}: {self.count:,}/{self.total:,}, {rate:,.1f}/s, ETA {eta}{note}"


@contextmanager
def progress(
    label: str, total: int, console: Console, observe: Callable[[int], None] | None = None
) -> Iterator[Counter]:
    """Show the progress of `total` rows while the block runs; `observe` gets the count whenever it changes."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield Counter(label, total, bar, observe)


@contextmanager
def exit_on_error(*further: type[Exception], to_stderr: bool = False) -> Iterator[None]:
    """Print an error that the user can fix as one line and exit with status 2; `further` are errors to treat alike.

    No credential can be read in it, nor in the traceback of any other error. `to_stderr`: for a command whose standard
    output a machine reads.
    """
    sys.excepthook = _print_traceback
    errors: tuple[type[Exception], ...] = (EmbedderError, *further)
    try:
        yield
    except errors as error:
        # An error of a Ray task is an instance of its own class and of Ray's at once, and its text is the remote
        # traceback. Ray keeps the error itself in `cause`; read by name, because this package imports no Ray.
        console(to_stderr).print(masked(f"error: {getattr(error, 'cause', error)}"), markup=False)
        sys.exit(2)
    # After those that the command itself names: one may be any error of the system.
    except OSError as error:
        if error.errno not in NOT_ALLOWED or error.filename is None:
            raise
        told = f"error: {error.filename}: {error.strerror}; correct the path, or give this user the right to it"
        console(to_stderr).print(masked(told), markup=False)
        sys.exit(2)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(masked("".join(traceback.format_exception(kind, error, trace))))


def console(to_stderr: bool = False) -> Console:
    """Where commands print: a terminal, or lines of any length when the output is a file."""
    # Without emoji: rich would write one for `:key:` of a path or a text.
    return Console(highlight=False, soft_wrap=True, emoji=False, stderr=to_stderr)


def show_table(out: Console, table: Table) -> None:
    """Print a table on a terminal that is wide enough; else a line for each of its rows, which any log keeps whole."""
    width = Measurement.get(out, out.options.update(max_width=MOST_COLUMNS), table).maximum
    if out.is_terminal and width <= out.width:
        out.print(table)
        return
    for line in table_lines(table):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def table_lines(table: Table) -> list[str]:
    """The rows of a table as lines: the first cell, then each cell that is not empty behind the name of its column."""
    names = [str(column.header) for column in table.columns]
    lines, first = [str(table.title)] if table.title else [], ""
    for row in zip(*(map(str, column.cells) for column in table.columns), strict=True):
        # A row without a first cell belongs to the one above.
        first = row[0].strip() or first
        cells = [
            f"{name} {cell.strip()}".strip() for name, cell in zip(names[1:], row[1:], strict=True) if cell.strip()
        ]
        lines.append(f"{first}: {', '.join(cells)}" if cells else first)
    return lines + ([str(table.caption)] if table.caption else [])
