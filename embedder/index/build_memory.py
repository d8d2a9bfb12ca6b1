"""The memory that building a collection takes, from sizes alone; how it was measured is in DECISIONS.md."""

from __future__ import annotations

from embedder.config.index import BuildSettings
from embedder.index.faiss_index import TRAINING_ROWS, choose_factory

PROCESS_BYTES = 330e6
"""Of the process itself, with FAISS, Arrow and one file of vectors."""
ROW_BYTES = 100
"""Of a row beside its vector and texts: its key and name, and its place in the order."""
LEXICAL_BYTES = 1.5
"""Of the index of words, for each byte of text."""
SPARE = 1.2
"""What is asked for over what was measured."""


def build_bytes(rows: int, dimension: int, text_bytes: float, settings: BuildSettings) -> float:
    """Bytes for a collection of so many rows, whose texts with ids, titles and metadata take `text_bytes` each."""
    vector = 4 * dimension
    row = vector + ROW_BYTES + text_bytes
    if settings.lexical:
        row += LEXICAL_BYTES * text_bytes
    training = 0.0
    if choose_factory(settings.factory, rows, dimension) != "Flat":
        # The sample is copied, and once more by k-means; the codes of a row take no more than another eighth of it.
        training = 2 * min(rows, TRAINING_ROWS) * vector
        row += vector / 8
    return SPARE * (PROCESS_BYTES + rows * row + training)
