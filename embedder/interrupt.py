"""Ctrl-C at a command: one line, and within a few seconds the process is gone, with exit status 130."""

from __future__ import annotations

import os
import signal
import sys
import threading
from multiprocessing.connection import wait
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

    Whatever has been written until then stays, since a file is whole or not there. A second Ctrl-C does not wait.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    # By Python's own handler a signal waits until the main thread returns from C, which may be a call to an object
    # store of minutes; the number of the signal is in this pipe at once.
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    told = threading.Event()

    def leave_what_is_at_work(_number: int, _frame: FrameType | None) -> NoReturn:
        told.wait(CLOSING_S)
        # No KeyboardInterrupt, which libraries catch, and which ends in a traceback.
        raise SystemExit(STATUS)

    signal.signal(signal.SIGINT, leave_what_is_at_work)
    threading.Thread(target=_watch, args=(reading, line, told), daemon=True).start()


def interrupt_as_usual() -> None:
    """From now on Ctrl-C is a KeyboardInterrupt again, for a command that has an end of its own."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _watch(reading: int, line: str, told: threading.Event) -> None:
    """Wait for the interrupt, and end the process where the main thread has not done so in time."""
    while os.read(reading, 1)[0] != signal.SIGINT:
        pass
    _print(f"\n{line}\n" if sys.stderr.isatty() else f"{line}\n")
    told.set()
    # What is being closed, a Ray of our own for instance, can take half a minute.
    wait([reading], CLOSING_S)
    if sys.stderr.isatty():
        # A bar that is being drawn has hidden it.
        _print(SHOW_CURSOR)
    # The processes of a Ray that this one has started end with it.
    os._exit(STATUS)


def _print(text: str) -> None:
    """Write to standard error past Python's buffers, which may be locked by what was interrupted."""
    os.write(2, text.encode())
