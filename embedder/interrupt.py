"""Ctrl-C at a command: one line, and within a few seconds the process is gone, with exit status 130."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

STATUS = 130
"""The exit status of a process that an interrupt has ended, as shells have it."""
CLOSING_S = 1.0
"""Time in which what is open may be closed."""
GOES_ON = "interrupted; run the same command again, and it goes on from what is done"
SHOW_CURSOR = "\x1b[?25h"


def end_at_interrupt(line: str = GOES_ON) -> None:
    """From now on Ctrl-C prints `line` and ends this process within CLOSING_S; call it in the main thread.

    Whatever has been written until then stays, since a file is whole or not there.
    """

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        # A second one does not wait.
        signal.signal(signal.SIGINT, lambda *_: leave())
        print_line(f"{line}\n")
        # In a thread, because what is being closed, a Ray of our own for instance, can take half a minute.
        ending = threading.Timer(CLOSING_S, leave)
        ending.daemon = True
        ending.start()
        # No KeyboardInterrupt, which libraries catch, and which ends in a traceback.
        raise SystemExit(STATUS)

    signal.signal(signal.SIGINT, end)


def leave() -> NoReturn:
    """End this process at once; the processes of a Ray that it has started end with it."""
    if sys.stderr.isatty():
        # A bar that is being drawn has hidden it.
        print_line(SHOW_CURSOR)
    os._exit(STATUS)


def print_line(text: str) -> None:
    """Write to standard error past Python's buffers, which may be locked by what was interrupted."""
    os.write(2, (f"\n{text}" if sys.stderr.isatty() and text != SHOW_CURSOR else text).encode())
