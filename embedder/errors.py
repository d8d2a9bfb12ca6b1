"""Every error this package raises on purpose.

EmbedderError            carries one line for the user; a job that ends with one has exit status 2
├── ConfigError          the run file or an override is wrong; nothing has been started
├── DataError            a file or row is not what its format says
│   ├── LabelError       a labelling step lost, added or doubled rows
│   └── UnfinishedError  a folder in an object store that is not all there, or being replaced
├── ModelError           a model folder is missing or incomplete
├── DeviceError          a GPU was asked for and cannot be used
├── ClusterError         Ray does not start on this machine
├── NotFiniteError       a loss, gradient, weight or vector is NaN or infinite
├── BundleError          model, index and payload do not belong together
│   └── ProbeError       an encoder gives other vectors, or ranks, than the index was made with
├── LeaseError           another job works on the run, or has taken it over
└── StorageError         files cannot be written: the disk is full, read-only or failing
    └── UnreachableError the object store does not answer, or refuses
        └── NoAnswerError the same where a job reads or writes; a DataError too

A message names what was found, where, and what to do.
"""

from collections.abc import Callable
from reprlib import Repr


class EmbedderError(Exception):
    """Base of all errors a user can cause; takes one message, so that it survives pickling."""


class ConfigError(EmbedderError):
    """The run file or an override is wrong; nothing has been started."""


class DataError(EmbedderError):
    """A file or row is not what its format says."""


class LabelError(DataError):
    """A labelling step lost, added or doubled rows."""


class UnfinishedError(DataError):
    """A folder in an object store is not all there: it is being sent, or that was cut off."""


class ModelError(EmbedderError):
    """A model folder is missing or incomplete."""


class DeviceError(EmbedderError):
    """A GPU was asked for and cannot be used; nothing has been computed."""


class ClusterError(EmbedderError):
    """Ray does not start on this machine."""


class BundleError(EmbedderError):
    """Model, index and payload do not belong together, or a file of the bundle was altered."""


class ProbeError(BundleError):
    """An encoder gives other vectors, or ranks, than the index was made with."""


class StorageError(EmbedderError):
    """Files cannot be written: the disk is full, read-only or failing. What was read before goes on being read."""

    @property
    def reason(self) -> str:
        """The message without the path before it, which clients of a service need not know."""
        return str(self).rpartition(": ")[2]


class UnreachableError(StorageError):
    """An object store does not answer, or refuses; the same call may succeed later."""


class NoAnswerError(UnreachableError, DataError):
    """An object store does not answer a job, or refuses; the same call may succeed later."""


class LeaseError(EmbedderError):
    """Another job works on the run, or has taken it over; this one writes nothing more there."""


class NotFiniteError(EmbedderError):
    """A loss, gradient, weight or vector is NaN or infinite; nothing is made of it."""


MOST_SHOWN = 500
"""Characters of a value in a message."""


class _Shown(Repr):
    """Writes the beginning of any value, however large and however nested."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 200
        self.maxlong = 60
        self.maxlevel = 3

    def repr(self, x: object) -> str:
        """The beginning of a value."""
        text = super().repr(x)
        return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."

    def repr_int(self, value: int, level: int) -> str:
        """A whole number; Python writes none of some thousand digits."""
        return super().repr_int(value, level) if value.bit_length() < 10_000 else "a number of thousands of digits"


shown: Callable[[object], str] = _Shown().repr
"""The beginning of a value, for messages."""
