"""The words of a text: one splitter for mining, the index, near-duplicates and answers. Needs no torch.

Texts are compared as Unicode means them (NFKC, case folded), so that "café" equals itself however its accent is
written. A word is letters and digits with their combining marks, of one letter too. Beside plain words there are:

code words    `C++`, `os.path.join`, `snake_case`, `getUserName`, `utf-8`, `3.14`: whole and in parts, so that a query
              of either finds the text
bare words    of Arabic and Hebrew words that are written with vowel points, beside the pointed ones
bigrams       of scripts that are written without spaces (Chinese, Japanese, Thai, ...), and of Korean, whose words
              carry their particles; passages also have the single characters, for queries of one

Every step takes time in proportion to the text, whatever it holds.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import chain, pairwise

import bm25s
import regex
from bm25s.tokenization import Tokenized

LONGEST_WORD = 255
"""Characters; what is longer is cut into pieces of this length, as Lucene does."""
LONGEST_IDENTIFIER = 64
"""Characters of a word that is looked at for parts. Longer ones are hashes and encoded data, with parts by chance."""
# The words of short chunks are kept: 6 MB at most, and twice as fast on English text. More of them is no faster.
KEPT_CHARACTERS, KEPT_CHUNKS = 32, 16_384

# What may stand around a word without being part of it; a full stop only behind it.
SENTENCE_SIGNS = ',;:!?()[]"'

UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Bopomofo}\p{Yi}[\p{Line_Break=SA}--\p{So}--\p{Po}]ー〆]"
CHARACTER = r"[\p{L}\p{N}\p{M}]"
"""A character of a word; marks count too, so that they stay with their letter."""
LETTER = rf"[{CHARACTER}--{UNSPACED}]"
# `C++`, `C#`, `A+`; but not `a+b`.
PIECE = rf"{LETTER}+(?:\+\+|[+#](?!{LETTER}))?"
# A leading dot belongs to `.NET` and `.5`, but not to what follows three dots; `C++17` needs nothing between.
WHOLE = rf"(?:(?<![{CHARACTER}.])\.)?{PIECE}(?:(?:::|->|[-._/:@&+#]|(?<=\+\+)){PIECE})*"
TOKEN = regex.compile(rf"(?P<unspaced>{UNSPACED}[{UNSPACED}\p{{M}}]*)|(?P<whole>{WHOLE})|\p{{So}}", regex.V1)
PIECES = regex.compile(PIECE, regex.V1)
# `HTTPServer` is HTTP and Server, `URLs` is URL and s, `utf8` is utf and 8.
PARTS = regex.compile(
    r"\p{N}+|[\p{Lu}\p{Lt}]{2,}(?=s(?![\p{L}\p{M}]))|[\p{Lu}\p{Lt}]+(?![\p{Ll}\p{M}])"
    r"|[\p{Lu}\p{Lt}]?[^\p{Lu}\p{Lt}\p{N}]+|[\p{Lu}\p{Lt}]"
)
# What counts as one word where words are counted: a character of a script without spaces, else what spaces part.
COUNTED_WORD = regex.compile(rf"{UNSPACED}\p{{M}}*|[^\s{UNSPACED}]+", regex.V1)
LETTERS_WITH_MARKS = regex.compile(r"\P{M}\p{M}*|\p{M}+")

# Vowel points and signs of recitation, which most texts leave out.
POINTS = regex.compile(
    "[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u064b-\u0652\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed]+"
)
# More marks on one letter than any language has would take normalisation quadratic time (UAX 15, stream-safe text).
TOO_MANY_MARKS = regex.compile(r"(\p{M}{30})\p{M}+")
SUPERSCRIPT = regex.compile(r"(?<=\w)[⁰¹²³⁴-⁹]+")
FRACTION = regex.compile(r"(?<=\d)(?=[¼-¾⅐-⅞↉])")
INVISIBLE = regex.compile(r"[\p{Default_Ignorable_Code_Point}ـ]+")
DIGIT = regex.compile(r"[\p{Nd}--[0-9]]", regex.V1)
TYPOGRAPHIC = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛ʼ′", "'"),
        **dict.fromkeys("“”„‟″", '"'),
        **dict.fromkeys("‐‑‒–—―−﹘", "-"),
        **dict(zip("⁄٫٬♯", "/.,#", strict=True)),
        "\u200b": " ",
    }
)


def unified(text: str) -> str:
    """One form of a text: NFKC, plain quotes, dashes and digits, nothing invisible; the case stays."""
    if text.isascii():
        return text
    # What is invisible goes first, since it could part a long run of marks.
    text = TOO_MANY_MARKS.sub(r"\1", INVISIBLE.sub("", text.translate(TYPOGRAPHIC)))
    # Before NFKC, which would make 102 of 10² and 11/2 of 1½.
    text = FRACTION.sub(" ", SUPERSCRIPT.sub(r"^\g<0>", text))
    text = unicodedata.normalize("NFKC", text).translate(TYPOGRAPHIC)
    return str(DIGIT.sub(lambda found: str(unicodedata.decimal(found[0])), text))


def folded(text: str) -> str:
    """A unified text without case."""
    text = unified(text)
    if text.isascii():
        return text.lower()
    # Folding takes some letters apart, hence NFKC once more. The Turkish İ leaves a dot behind that no `i` has.
    return unicodedata.normalize("NFKC", text.casefold().replace("i\u0307", "i"))


def unpointed(text: str) -> str:
    """A text without the vowel points of Arabic and Hebrew."""
    return text if text.isascii() else str(POINTS.sub("", text))


def passage_words(text: str) -> list[str]:
    """The words under which a passage is found, in their order; repeated ones are repeated."""
    # No word holds white space, and most pieces between it come again and again, so that their words are kept.
    return list(chain.from_iterable(map(PASSAGE_CHUNKS.__getitem__, text.split())))


def query_words(text: str, stop_words: str | None = None) -> list[str]:
    """The words for which a query searches: those of a passage, less stop words and the characters of bigrams.

    `stop_words` names a list of bm25s (embedder.config.language). A query of stop words alone keeps them, so that `IT`
    and `to be or not to be` are found whatever the list.
    """
    words = list(chain.from_iterable(map(QUERY_CHUNKS.__getitem__, text.split())))
    if stop_words is None:
        return words
    left_out = _stop_words(stop_words)
    return [word for word in words if word not in left_out] or words


@cache
def _stop_words(name: str) -> frozenset[str]:
    names = {"english": "EN", "english_plus": "EN_PLUS"}
    return frozenset(map(folded, getattr(bm25s.stopwords, f"STOPWORDS_{names.get(name, name.upper())}")))


def tokenized(passages: Iterable[str]) -> Tokenized:
    """The words of passages as bm25s indexes them: numbers, and the vocabulary that they count."""
    vocabulary = _Numbers()
    ids = [list(map(vocabulary.__getitem__, passage_words(text))) for text in passages]
    return Tokenized(ids=ids, vocab=dict(vocabulary))


class _Numbers(dict[str, int]):
    """Numbers words in the order in which they are first asked for."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


class _Chunks(dict[str, tuple[str, ...]]):
    """The words of texts without white space; those of short ones are kept, up to a number."""

    def __init__(self, of_query: bool) -> None:
        super().__init__()
        self.of_query = of_query

    def __missing__(self, chunk: str) -> tuple[str, ...]:
        words = _chunk_words(chunk, self.of_query)
        if len(chunk) <= KEPT_CHARACTERS:
            if len(self) >= KEPT_CHUNKS:
                self.clear()
            self[chunk] = words
        return words


def _chunk_words(chunk: str, of_query: bool) -> tuple[str, ...]:
    """The words of a text without white space."""
    core = chunk.strip(SENTENCE_SIGNS).rstrip(".")
    if core.isascii() and len(core) <= LONGEST_WORD and (core.isdigit() or (core.isalpha() and _has_one_case(core))):
        # By far the most frequent case, and twenty times as fast; the rest of this function gives the same.
        return (core.lower(),)
    words: list[str] = []
    for found in TOKEN.finditer(unified(chunk)):
        match found.lastgroup:
            case "whole":
                words += _code_words(found[0])
            case "unspaced":
                words += _bigrams(folded(found[0]), of_query)
            case _:
                words.append(found[0])
    return tuple(words)


def _has_one_case(letters: str) -> bool:
    return letters.islower() or letters.istitle() or letters.isupper()


PASSAGE_CHUNKS, QUERY_CHUNKS = _Chunks(of_query=False), _Chunks(of_query=True)


def _code_words(whole: str) -> list[str]:
    """A word; if it has parts, these too, from the larger to the smaller."""
    pieces = PIECES.findall(whole)
    # Of many pieces together nobody types more than that; a single one is cut below.
    words = [whole] if len(whole) <= LONGEST_WORD or len(pieces) == 1 else []
    for piece in pieces:
        bare = piece.rstrip("+#")
        words += [part for part in dict.fromkeys((piece, bare)) if part != whole]
        if len(bare) <= LONGEST_IDENTIFIER:
            parts = PARTS.findall(bare)
            words += parts if len(parts) > 1 else []
    words += [bare for word in words if (bare := unpointed(word)) != word and bare]
    return [word[i : i + LONGEST_WORD] for word in map(folded, words) for i in range(0, len(word), LONGEST_WORD)]


def _bigrams(run: str, of_query: bool) -> list[str]:
    """The pairs of neighbours in a run of characters, and the characters themselves if alone or of a passage."""
    characters: list[str] = LETTERS_WITH_MARKS.findall(run)
    pairs = [first + second for first, second in pairwise(characters)]
    return pairs if of_query and pairs else characters + pairs
