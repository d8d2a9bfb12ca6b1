"""docs/configuration.md: it is what the models say, and every setting has a description."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import get_args, get_origin

import pytest
from pydantic import BaseModel

from embedder.config.manual import FILE, manual
from embedder.config.run import RunConfig
from embedder.config.unknown_keys import alternatives, is_model


def models(annotation: object) -> Iterator[type[BaseModel]]:
    """All models that a value may hold, at any depth."""
    for kind in alternatives(annotation):
        if get_origin(kind) in (list, dict):
            yield from models(get_args(kind)[-1])
        elif is_model(kind):
            yield kind
            for field in kind.model_fields.values():
                yield from models(field.annotation)


MODELS = list(dict.fromkeys(models(RunConfig)))
TEXT = manual()


def test_the_manual_that_is_committed_is_the_one_of_the_models():
    assert FILE.read_text(encoding="utf-8") == TEXT, "run `python -m embedder.config.manual`"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_setting_has_a_description_of_whole_sentences(model):
    for name, field in model.model_fields.items():
        description = field.description or ""
        assert description.endswith((".", ")")), f"{name}: {description!r}"
        assert not re.match(r"(Of|As in|Whether|The same)\b", description), f"{name}: {description!r}"


def test_the_manual_has_a_row_for_every_setting():
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \| [^|]+ \|$", TEXT.replace("\\|", ""), re.MULTILINE)
    settings = [name for model in MODELS if model is not RunConfig for name in model.model_fields]
    assert sorted(rows) == sorted(settings)


def test_the_manual_links_every_section():
    links = re.findall(r"^\| \[`(\w+)`\]\(#\1\) \| .", TEXT, re.MULTILINE)
    headings = re.findall(r"^## (\w+)$", TEXT, re.MULTILINE)
    assert links == headings == list(RunConfig.model_fields)


def test_a_key_a_type_a_default_and_a_description_make_a_row():
    assert "| `work` | path or URI | *required* | Folder of everything" in TEXT
    assert "| `cache` | path | `.cache` | " in TEXT
    assert "| `chunk_tokens` | integer ≥ 64 or null | `null` | " in TEXT
    assert "| `bounds` | [number, number] | `[0.5, 2.0]` | " in TEXT
    assert "| `self_paced` | section | defaults below | " in TEXT
    assert "| `retrievers` | list of sections | `[none, random, recency, bm25, base, trained]` | " in TEXT
