"""Cuts sections into chunks of so many tokens of the encoder, at the ends of paragraphs, sentences or words."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from embedder.config.prepare import Source
from embedder.config.tasks import TaskSpec
from embedder.data.documents.section import DocumentPart
from embedder.errors import ConfigError
from embedder.models.locate import locate_model

TITLE_SHARE = 1 / 3
"""Part of a chunk that its heading path may take."""
WINDOW = 16_384
"""Characters that are cut at once: the splitter's time grows with the square of a text without spaces."""
LEAST_TOKENS = 8
"""Tokens of text that a chunk has at least beside instruction and headings."""
SLACK = 2
"""Tokens that may be added where two texts meet."""


@dataclass(frozen=True)
class Chunk:
    """A piece of a section."""

    title: str
    """Its heading path."""
    text: str
    page: int | None


class Chunker:
    """Cuts so that instruction, heading path and text of a chunk fit into `chunk_tokens`."""

    def __init__(self, source: Source, task: TaskSpec) -> None:
        """Load the tokenizer.

        Raises:
            ConfigError: it is not of the kind that counts, or the instruction leaves no room for a text.
            ModelError, DataError: its folder is missing.
        """
        assert source.tokenizer is not None and source.chunk_tokens is not None
        file = locate_model(source.tokenizer) / "tokenizer.json"
        if not file.is_file():
            raise ConfigError(
                f"source {source.dataset}: {file} is missing, by which chunks are counted; name a model with one as "
                "`tokenizer` of the source"
            )
        # Here, because only sources of documents need them, and a run file is checked in a second.
        from semantic_text_splitter import MarkdownSplitter, TextSplitter
        from tokenizers import Tokenizer

        self._kinds: dict[bool, type[MarkdownSplitter | TextSplitter]] = {True: MarkdownSplitter, False: TextSplitter}
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._overlap = source.chunk_overlap
        # An encoder that pools the last token gets one where its tokenizer adds none.
        special = self._tokenizer.num_special_tokens_to_add(is_pair=False) + 1
        self._room = source.chunk_tokens - special - SLACK - self._count(task.passage_instruction)
        if self._room < 2 * LEAST_TOKENS:
            raise ConfigError(
                f"source {source.dataset}: chunk_tokens {source.chunk_tokens} leave {max(self._room, 0)} for headings "
                f"and text beside the instruction of {source.task}; raise encoder.max_tokens or chunk_tokens"
            )

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def chunks(self, section: DocumentPart, markdown: bool) -> Iterator[Chunk]:
        """The chunks of a section in their order; neighbours have up to `chunk_overlap` tokens in common."""
        title = self._title(section.headings)
        room = self._room - (self._count(title) + 1 if title else 0)
        overlap = min(self._overlap, room // 2)
        splitter = self._kinds[markdown].from_callback(self._count, room, overlap)
        begins = [begin for begin, _ in section.pages]
        for first, window in _windows(section.text):
            for begin, text in splitter.chunk_indices(window):
                # The page on which a chunk begins.
                at = bisect_right(begins, first + begin) - 1
                yield Chunk(title, text, section.pages[at][1] if begins else None)

    def _title(self, headings: tuple[str, ...]) -> str:
        """The heading path; where it is too long it loses what is far from the text, and then its end."""
        most = int(self._room * TITLE_SHARE)
        for i in range(len(headings)):
            path = " > ".join(headings[i:])
            if len(path) <= WINDOW and self._count(path) <= most:
                return path
        if not headings:
            return ""
        last = headings[-1][:WINDOW]
        ends = [end for _, end in self._tokenizer.encode(last, add_special_tokens=False).offsets[:most]]
        return last[: max(ends, default=0)].strip()


def _windows(text: str) -> Iterator[tuple[int, str]]:
    """Pieces of a text that are cut one by one, with where they begin; they end with a paragraph, line or word."""
    begin = 0
    while len(text) - begin > WINDOW:
        ends = (text.rfind(sign, begin + WINDOW // 2, begin + WINDOW) for sign in ("\n\n", "\n", " "))
        end = next((end for end in ends if end > 0), begin + WINDOW)
        yield begin, text[begin:end]
        begin = end
    yield begin, text[begin:]
