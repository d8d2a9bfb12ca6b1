"""Log messages in which no credential can be read, whoever writes: fsspec, urllib3, MLflow, Ray or this package."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from embedder.credentials import masked


class MaskedRecord(logging.LogRecord):
    """A log record whose message and traceback are masked when a handler asks for them."""

    def getMessage(self) -> str:
        return masked(super().getMessage())

    # A property in place of the attribute, because it is a formatter that writes it, and the same one then reads it.
    @property
    def exc_text(self) -> str | None:
        """The traceback as text, once a formatter has made it."""
        text: str | None = self.__dict__["exc_text"]
        return text

    @exc_text.setter
    def exc_text(self, text: str | None) -> None:
        self.__dict__["exc_text"] = None if text is None else masked(text)


@cache
def mask_logs() -> None:
    """Mask all that this process logs from now on; a second call does nothing.

    Records are masked and not handlers, because Ray adds handlers of its own to each worker before and after this.
    """
    made = logging.getLogRecordFactory()

    def masked_record(*arguments: Any, **named: Any) -> logging.LogRecord:  # noqa: ANN401 - as logging calls it
        # Ray's factory, which adds its time, makes plain records; only their class is exchanged.
        record = made(*arguments, **named)
        record.__class__ = MaskedRecord
        return record

    logging.setLogRecordFactory(masked_record)
