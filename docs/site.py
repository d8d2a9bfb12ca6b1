"""What `make docs` changes of a page: the marks of commands, which the tests read and the site does not know."""

from __future__ import annotations

import re
from typing import Any

MARK = re.compile(r"^```sh .*$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:  # noqa: ANN401  (MkDocs gives its own objects)
    """The page with plain blocks of shell commands."""
    return MARK.sub("```sh", markdown)
