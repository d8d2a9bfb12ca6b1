"""When two answers are the same: SQuAD's comparison, which leaves in what tells answers apart, in any script.

Case, punctuation, articles and layout do not count (Rajpurkar et al. 2016; punctuation of all scripts and words by
characters where a script has no spaces as in MLQA, Lewis et al. 2020, and CMRC 2018), nor do vowel points. What does
count: signs and decimals (`-5`, `3.14`, `1/2`), operators (`C++`, `C#`, `x<y`), a letter that only looks like an
article (`vitamin A`).
"""

from __future__ import annotations

import regex

from embedder.words import CHARACTER, COUNTED_WORD, UNSPACED, folded, unpointed

# An article stands before a word, so `A`, `vitamin A`, `A, B` and `A + B` keep theirs.
ARTICLE = regex.compile(
    rf"(?<![^\s(\[{{\"'])(?:an?|the)(?=[)\]}}\"']*\s[\s(\[{{\"']*[-+]?[\p{{Sc}}.]?[{CHARACTER}--{UNSPACED}])", regex.V1
)
THOUSANDS = regex.compile(r"(?<![\d.,'])\d{1,3}(?:(?:,\d{3})++|(?:'\d{3})++)(?!\d|[,']\d)")
# Between thousands many languages write a space at which no line ends; NFKC makes a common one of it.
SPACED_THOUSANDS = regex.compile(r"(?<![\d.,'])\d{1,3}(?:[\u00a0\u2009\u202f]\d{3})++(?!\d)")
LEADING_DOT = regex.compile(r"(?<![\w.])\.(?=\d)")
SIGN = rf"""
    (?<=\d)[\p{{P}}^=<>|~](?=\d)                                      # 3.14  1/2  12:30  2-1
    | (?<![{CHARACTER})\]])-(?=\p{{Sc}}?[\d∞]|\p{{L}}{{1,3}}(?!{CHARACTER})) # -5  -$5  -x
    | (?<=\de)-(?=\d)                                                 # 1e-5
    | (?<=(?<![{CHARACTER}*])\p{{L}}{{1,2}})[-*](?![\w*])             # A-  AB-  A*
    | (?<={CHARACTER})\#(?!{CHARACTER})                               # C#
    | (?<={CHARACTER})(?:!=|[=<>^*~|]+)(?=-?{CHARACTER})              # x<y  x^2
    | (?<!{CHARACTER})[<>]=?(?=[-+]?\p{{Sc}}?\d)                      # <5
    | (?<!\S)(?:!=|[<>=]+)(?!\S)                                      # x < y
"""
"""Punctuation that carries meaning."""
PUNCTUATION = regex.compile(rf"(?P<sign>{SIGN})|[\p{{P}}$^`|~<>=]", regex.V1 | regex.VERBOSE)
"""SQuAD's punctuation but `+`, with that of all scripts."""
QUOTES = regex.compile(r"[\"'\p{Ps}\p{Pe}\p{Pi}\p{Pf}]+")
SPACE_BESIDE_UNSPACED = regex.compile(rf"(?<={UNSPACED}\p{{M}}*)\s+|\s+(?={UNSPACED})", regex.V1)


def normalise_answer(text: str) -> str:
    """The form in which answers are compared; never empty unless nothing of the text is visible."""
    return _without_punctuation(ARTICLE.sub("", _folded(text)), "")


def answer_words(text: str) -> list[str]:
    """The words of a normalised answer; single characters of scripts without spaces."""
    words: list[str] = COUNTED_WORD.findall(normalise_answer(text))
    return words


def rouge_words(text: str) -> list[str]:
    """The words for ROUGE: articles count, and punctuation parts words, as in rouge-score."""
    words: list[str] = COUNTED_WORD.findall(_without_punctuation(_folded(text), " "))
    return words


def _folded(text: str) -> str:
    plain = folded(SPACED_THOUSANDS.sub(lambda found: "".join(str(found[0]).split()), text))
    # An answer of points alone keeps them, so that it is not nothing.
    return unpointed(plain) or plain


def _without_punctuation(text: str, gap: str) -> str:
    numbers = LEADING_DOT.sub("0.", THOUSANDS.sub(lambda found: regex.sub("[,']", "", found[0]), text))
    plain = _squeezed(PUNCTUATION.sub(lambda found: found["sign"] or gap, numbers))
    # An answer of signs alone (`-`, `?`) is compared as it is.
    return plain or _squeezed(QUOTES.sub("", text)) or _squeezed(text)


def _squeezed(text: str) -> str:
    return str(SPACE_BESIDE_UNSPACED.sub("", " ".join(text.split())))
