"""Rendering of report pages: one HTML file each without network or script, for light and dark screens."""

from __future__ import annotations

import re

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from embedder.credentials import masked

NONE, MINUS = "–", "−"
"""What stands for a number that is not known, and before one below 0."""

TEXT_CHARACTERS = 300
"""Longer texts are cut where a page does not say otherwise."""


def render(template: str, **values: object) -> str:
    """Fill a template of `templates/` with values; what looks like a credential is masked in the result.

    Every text of a page is escaped; in Markdown (`.md.j2`) none is. Texts of a corpus must go through `printable` as
    well.

    Raises:
        jinja2.TemplateError: the template asks for a value that it was not given.
    """
    return masked(PAGES.get_template(template).render(values))


def printable(text: str, most: int = TEXT_CHARACTERS) -> str:
    """A text that can be written as UTF-8: no lone surrogates, no control characters; cut to `most` characters."""
    # Cut first, because a text of a corpus can be a whole book.
    shown = re.sub(r"[^\S\n\t]|[\x00-\x08\x0b-\x1f\x7f-\x9f]", " ", text[:most]).encode("utf-8", "replace").decode()
    return shown + "…" if len(text) > most else shown


def one_line(text: str, most: int) -> str:
    """The first `most` characters of a text without its line breaks."""
    return " ".join(text.split())[:most] or NONE


def thousands(value: float) -> str:
    """A whole number with its thousands marked."""
    return f"{value:,}"


def share(value: float | None) -> str:
    """A share of 1 as per cent."""
    return NONE if value is None else f"{value:.1%}"


def fixed(value: float | None, digits: int, sign: str = "-") -> str:
    """A number with `digits` decimals; `sign` is that of a format string: "+" marks positive numbers too."""
    return NONE if value is None else f"{value:{sign},.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int) -> str:
    """A number with its sign and at most `digits` decimals, without zeros at the end."""
    shown = fixed(value, digits, "+").rstrip("0").rstrip(".")
    return "0" if shown in {"+0", f"{MINUS}0"} else shown


def significant(value: float) -> str:
    """Three significant digits, or a whole number with its thousands marked."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, or seconds alone."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d} h" if whole >= 60 else f"{seconds:.1f} s"


# StrictUndefined, because a mistyped name would otherwise be an empty cell that nobody misses.
PAGES = Environment(
    loader=PackageLoader("embedder.reporting"),
    autoescape=select_autoescape(disabled_extensions=["md.j2"], default=True),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGES.globals["NONE"] = NONE
for text_format in (printable, one_line, thousands, share, fixed, signed, significant, duration):
    PAGES.filters[text_format.__name__] = text_format
