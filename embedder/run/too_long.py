"""How many prepared texts are too long for the encoder, found by its tokenizer on a sample before anything is encoded.

Without torch and without the model: `tokenizer.json` of its folder is enough. `index`, `mine` and `evaluate` count
exactly, because they read all texts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import get_args

import pyarrow as pa
from tokenizers import Tokenizer

from embedder.config.run import EncoderConfig, RunConfig
from embedder.config.tasks import Side, TaskSpec
from embedder.data.records import ID_TEXT, SIDE_WORDS, Split, open_parquet, parquet_files
from embedder.errors import EmbedderError
from embedder.models.locate import locate_model
from embedder.storage.object_store import AnyPath

SAMPLE = 2_000
"""Texts of a dataset and side that are read at most."""
PARTS = 16
"""Row groups, of some thousand rows, out of which they are chosen."""


def long_text_lines(config: RunConfig) -> list[str]:
    """A line for each prepared dataset; none where the tokenizer is not on this machine."""
    counter = TokenCounter.of(config.encoder)
    if counter is None:
        return []
    lines = []
    for source in sorted(config.needed_prepare.sources, key=lambda source: source.dataset):
        queries = [config.paths.queries / split / f"{source.dataset}.parquet" for split in get_args(Split)]
        files: dict[Side, list[AnyPath]] = {
            "query": [path for path in queries if path.is_file()],
            "passage": parquet_files(config.paths.corpus / source.dataset),
        }
        spec = config.tasks[source.task]
        parts = [part for side, own in files.items() if (part := _counted(spec, counter, side, own))]
        name = f"{source.dataset} ({source.task})"
        lines += [f"{name}: longer than encoder.max_tokens {counter.most}: {', '.join(parts)}"] if parts else []
    return lines


class TokenCounter:
    """The tokenizer of an encoder, which tells whether a text is cut."""

    def __init__(self, tokenizer: Tokenizer, config: EncoderConfig) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self.most = tokenizer, config.max_tokens
        special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        # As `complete_tokenizer` does: the pooling `last` needs an end token, which the encoder adds where none is.
        self._added = int(config.pooling == "last" and tokenizer.encode("a").ids[-1] not in special)

    @classmethod
    def of(cls, config: EncoderConfig) -> TokenCounter | None:
        """None where the model's folder is not on this machine, or has no tokenizer of the fast kind."""
        if "://" in config.model:
            return None
        try:
            file = locate_model(config.model) / "tokenizer.json"
        except EmbedderError:
            return None
        return cls(Tokenizer.from_file(str(file)), config) if file.is_file() else None

    def too_long(self, texts: Sequence[str]) -> int:
        """How many of the texts, which carry their instruction, need more tokens than the encoder reads."""
        return sum(len(read.ids) + self._added > self.most for read in self._tokenizer.encode_batch(texts))


def _counted(spec: TaskSpec, counter: TokenCounter, side: Side, files: Sequence[AnyPath]) -> str:
    """So many of so many; empty where none is too long."""
    texts, total = _sample(files, ID_TEXT[side][1])
    prompted = [str(spec.prompted(side, text)) for text in texts]
    if not prompted:
        return ""
    of = f" (a sample of {total:,})" if len(prompted) < total else ""
    cut = counter.too_long(prompted)
    return f"{cut:,} of {len(prompted):,} {SIDE_WORDS[side]}{of}" if cut else ""


def _sample(files: Sequence[AnyPath], column: str) -> tuple[list[str], int]:
    """At most SAMPLE texts of a column, the same at each call, and how many rows there are."""
    draw, total = random.Random(0), 0
    parts: list[tuple[AnyPath, int]] = []
    for path in files:
        with open_parquet(path) as file:
            total += file.metadata.num_rows
            parts += [(path, number) for number in range(file.num_row_groups)]
    tables = []
    for path, number in draw.sample(parts, min(PARTS, len(parts))):
        with open_parquet(path) as file:
            tables.append(file.read_row_group(number, [column]))
    if not tables:
        return [], total
    table = pa.concat_tables(tables)
    texts: list[str] = table.take(draw.sample(range(table.num_rows), min(SAMPLE, table.num_rows)))[column].to_pylist()
    return texts, total
