"""The words of texts in several scripts, of code, and of hostile input."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.words import folded, passage_words, query_words, tokenized
from tests.unit.judges import quick


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("The Fox, (again)!", ["the", "fox", "again"], id="plain words"),
        pytest.param("R, C and IT; a 5", ["r", "c", "and", "it", "a", "5"], id="single letters and stop words"),
        pytest.param("Größe STRASSE Straße", ["grösse", "strasse", "strasse"], id="German"),
        pytest.param("İstanbul ISTANBUL istanbul", ["istanbul"] * 3, id="Turkish İ"),
        pytest.param("हिन्दी में लिखा।", ["हिन्दी", "में", "लिखा"], id="Hindi vowel signs stay"),
        pytest.param("كِتَابٌ، قَلَم؟", ["كِتَابٌ", "كتاب", "قَلَم", "قلم"], id="Arabic with and without points"),
        pytest.param("שָׁלוֹם", ["שָׁלוֹם", "שלום"], id="Hebrew with and without points"),
        pytest.param("می‌خواهم", ["میخواهم"], id="a Persian word with a joiner inside"),
        pytest.param("don’t l'été", ["don", "t", "l", "été"], id="apostrophes part"),
        pytest.param("ＩＴ ５ ٣ १० x²", ["it", "5", "3", "10", "x", "2"], id="wide letters and digits of any script"),
        pytest.param("soft\u00adhyphen", ["softhyphen"], id="nothing invisible"),
        pytest.param("good 😀👩‍💻", ["good", "😀", "👩", "💻"], id="emoji"),
        pytest.param("?! ... -- +", [], id="signs alone"),
    ],
)
def test_passage_words_of_scripts_with_spaces(text, words):
    assert passage_words(text) == query_words(text) == words


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        pytest.param("数据库。", ["数据", "据库"], id="Chinese"),
        pytest.param("東京は、猫", ["東京", "京は", "猫"], id="Japanese, a character alone"),
        pytest.param("ﾃｽﾄ", ["テス", "スト"], id="narrow Katakana"),
        pytest.param("서울은 강", ["서울", "울은", "강"], id="Korean"),
        pytest.param("ง่าย", ["ง่า", "าย"], id="Thai marks stay with their letter"),
        pytest.param("iPhone手机", ["iphone", "i", "phone", "手机"], id="two scripts in one word"),
    ],
)
def test_query_words_of_scripts_without_spaces_are_bigrams(text, pairs):
    assert query_words(text) == pairs
    assert set(pairs) < set(passage_words(text)) or len(text) == 1


def test_passage_words_have_the_characters_of_bigrams_too():
    assert passage_words("数据库") == ["数", "据", "库", "数据", "据库"]
    assert set(query_words("据")) <= set(passage_words("数据库"))


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        ("C++", "c"),
        ("C#", "c"),
        (".NET", "net"),
        ("os.path.join", "os path join"),
        ("snake_case", "snake case"),
        ("camelCase", "camel case"),
        ("HTTPServer", "http server"),
        ("URLs", "url"),
        ("utf-8", "utf 8"),
        ("utf8", "utf 8"),
        ("3.14.15", "3 14 15"),
        ("C++17", "c++ c 17"),
        ("C/C++", "c c++"),
        ("std::vector", "std vector"),
        ("x86_64", "x86 x 86 64"),
        ("me@example.org", "me example org"),
        ("/usr/bin/python3", "usr bin python"),
    ],
)
def test_passage_words_of_code_are_whole_and_in_parts(code, parts):
    words = passage_words(f"({code}), and so on.")
    assert code.lower().lstrip("/") in words
    assert set(parts.split()) <= set(words)
    assert set(query_words(code)) <= set(words)


def test_passage_words_a_sentence_that_ends_in_code_leaves_the_full_stop_out():
    assert passage_words("Use C++. Or .NET... or e.g. R.") == [
        *("use", "c++", "c", "or", ".net", "net", "or", "e.g", "e", "g", "r")
    ]


def test_passage_words_that_are_too_long_are_cut():
    assert passage_words("a" * 600) == ["a" * 255, "a" * 255, "a" * 90]
    assert set(passage_words("ab." * 300)) == {"ab"}


def test_query_words_leave_out_the_stop_words_of_the_settings_unless_there_are_no_others():
    assert query_words("What is the C++ of it?", "english") == ["what", "c++", "c"]
    assert query_words("IT", "english") == ["it"]
    assert query_words("To be or not to be", "english") == ["to", "be", "or", "not", "to", "be"]
    assert query_words("die Größe der Stadt", "german") == ["grösse", "stadt"]
    assert query_words("the fox") == ["the", "fox"]


def test_tokenized_words_are_numbered_as_bm25s_wants_them():
    tokens = tokenized(["a fox a", "", "Fox"])
    assert (tokens.ids, tokens.vocab) == ([[0, 1, 0], [], [1]], {"a": 0, "fox": 1})


@quick
@given(st.text())
def test_query_words_of_a_text_are_words_of_the_same_passage(text):
    words = passage_words(text)
    assert set(query_words(text)) <= set(words)
    assert all(word and not any(letter.isspace() for letter in word) for word in words)
    assert all(folded(word) == word for word in words)


@quick
@given(st.text())
def test_passage_words_do_not_depend_on_how_accents_are_written(text):
    # A text of strategies may hold more marks on a letter than the splitter looks at.
    assert passage_words(unicodedata.normalize("NFD", text)) == passage_words(unicodedata.normalize("NFC", text))


@quick
@given(st.from_regex(r"""[,;:!?()\[\]"'.]*([a-z]+|[A-Z]+|[A-Z][a-z]+|[0-9]+)[,;:!?()\[\]"'.]*""", fullmatch=True))
def test_passage_words_of_simple_words_are_those_of_the_whole_splitter(chunk):
    # A section sign keeps a word out of the shortcut for simple ones.
    assert passage_words(chunk) == passage_words("§" + chunk)


HOSTILE = (
    "a",
    "\u0301",
    "\u0301\u0316",
    "\u200d\u0301\u0316",
    ".",
    "a.",
    "a-",
    "A",
    "aB",
    "'",
    "+",
    "a+",
    "中",
    "1,",
    "ᄀ",
)


@pytest.mark.parametrize("unit", HOSTILE, ids=ascii)
def test_passage_words_take_time_in_proportion_to_the_text(unit):
    text = unit * (200_000 // len(unit))
    began = time.process_time()
    passage_words(text)
    query_words(text)
    # Half a second; what is quadratic takes many minutes.
    assert time.process_time() - began < 10


def test_bm25_keeps_jax_off_the_gpu_where_it_is_installed(tmp_path):
    """bm25s computes with JAX as it is imported, and JAX by itself takes three quarters of a GPU."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("import os\nprint(os.environ['JAX_PLATFORMS'])\n")
    (tmp_path / "jax" / "lax.py").write_text(
        "def top_k(scores, k):\n    print('computed')\n    return scores, scores\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, "-c", "import embedder.words"]
    done = subprocess.run(command, env={**environment, "PYTHONPATH": paths}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["cpu", "computed"]
