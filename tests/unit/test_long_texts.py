"""White space of texts that continue: what stands between query and answer is the document's own."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.config.prepare import Source
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.dataset import read_source
from embedder.labelling.prompts import prompt_builder
from embedder.models.causal_lm import load_lm
from embedder.words import COUNTED_WORD
from tests.conftest import DATA
from tests.unit.judges import quick
from tests.unit.test_dataset import lines, read_layout


def test_long_text_is_read_by_the_llm_as_it_stands_where_two_chunks_meet(tmp_path, tiny_llm):
    """The LLM reads "market fox" and not "marketfox", case 13-lrlm-glued."""
    text = " ".join(["fox runs over the old bridge near market"] * 12)
    got = read_layout(tmp_path, "lrlm", train=[{"query_id": "doc", "text": text}], chunk_words=8)
    lm = load_lm(tiny_llm, tmp_path / "cache", device="cpu")
    builder = prompt_builder(lm, BUILTIN_TASKS["lrlm"], tiny_llm)
    for row in got.queries["train"]:
        assert row["query"] + row["answers"][0] in text
        packed = builder.pack(builder.prefix(row["query"], [], []), row["query"], row["answers"])
        read = lm.tokenizer.decode(packed.prefix + packed.outputs[0])
        assert "market fox" in read and "marketfox" not in read


@quick
@given(st.lists(st.sampled_from(["word", "é,", "(x"]), min_size=50, max_size=80), st.data())
def test_long_text_query_and_answer_together_are_a_slice_of_it(tmp_path_factory, words, data):
    spaces = st.sampled_from([" ", "\n\n", "\t", " \n    ", "\u3000", "\xa0"])
    text = "".join(word + data.draw(spaces) for word in words)
    folder = tmp_path_factory.mktemp("text")
    row, recent = {"query_id": "doc", "text": text}, data.draw(st.integers(0, 2))
    got = read_layout(folder, "lrlm", train=[row], chunk_words=8, recent_chunks=recent)
    assert got.queries["train"]
    for query in got.queries["train"]:
        assert query["query"] + query["answers"][0] in text
        assert query["answers"][0][0].isspace() and not query["answers"][0][-1].isspace()


@pytest.mark.parametrize(
    ("query", "answer", "wanted"),
    [
        ("a b", " c", " c"),
        ("a b ", "c", " c"),
        ("a b\n", "\n  c", "\n\n  c"),
        (" a b", "c", "c"),
        ("a b", "c\n", "c\n"),
    ],
)
def test_layout_reader_keeps_white_space_of_answers_that_continue_the_query(tmp_path, query, answer, wanted):
    row = {"query": query, "answers": [answer], "pos": ["P"]}
    (kept,) = read_layout(tmp_path / "lrlm", "lrlm", train=[row]).queries["train"]
    assert (kept["query"], kept["answers"]) == (query.strip(), [wanted])
    assert (query + answer).lstrip() == kept["query"] + kept["answers"][0]
    (plain,) = read_layout(tmp_path / "qa", "qa", train=[row]).queries["train"]
    assert plain["answers"] == [answer.strip()]


def test_reference_reader_keeps_white_space_of_answers_that_continue_the_query(tmp_path):
    lines(tmp_path / "rows.jsonl", [{"query": "def f():", "answers": ["\n    return 1"], "pos": ["P"], "neg": ["N"]}])
    source = Source(task="lrlm", dataset="d", path=tmp_path / "rows.jsonl", format="reference")
    assert read_source(source, BUILTIN_TASKS["lrlm"], 0).queries["train"][0]["answers"] == ["\n    return 1"]


def test_long_text_does_not_mind_what_stands_beside_it(tmp_path):
    row = {"query_id": "doc", "text": "word " * 60, "history": 5, "pos": 3, "teacher_scores": True, "query": None}
    got = read_layout(tmp_path, "lrlm", train=[row], chunk_words=10, recent_chunks=0)
    assert (got.rejected, len(got.queries["train"])) == ([], 2)


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data are not here")
@pytest.mark.parametrize("folder", sorted(DATA.glob("lrlm/*")), ids=lambda path: path.name)
def test_long_texts_of_real_data_are_sliced_as_they_stand(folder):
    """Recent text and next chunk are one slice, and no candidate reaches into it."""
    source = Source(task="lrlm", dataset=folder.name, path=folder, train_queries=60)
    got = read_source(source, BUILTIN_TASKS["lrlm"], 0)
    text = (folder / "train.jsonl").read_text(encoding="utf-8")
    documents = {row["query_id"]: row["text"].strip() for row in map(json.loads, text.splitlines())}
    words = {name: [match.span() for match in COUNTED_WORD.finditer(text)] for name, text in documents.items()}
    size, asked = source.chunk_words, 0
    for query in got.queries["train"]:
        document, j = query["query_id"].rsplit("#", 1)
        text, spans = documents[document], words[document]
        first, last = spans[(int(j) - 4) * size][0], spans[min((int(j) + 2) * size, len(spans)) - 1][1]
        assert query["query"] + query["answers"][0] == text[first:last]
        for name in query["pool_ids"]:
            i = int(name.rsplit("#", 1)[1])
            begin, end = spans[i * size][0], spans[(i + 2) * size - 1][1]
            assert end < first and got.passages[name]["text"] == text[begin:end]
        asked += len(query["pool_ids"])
    assert asked > 60 * 20


def test_long_text_without_spaces_is_cut_by_characters(tmp_path):
    text = "中国的首都是北京，有两千万人口。" * 10
    got = read_layout(tmp_path, "lrlm", train=[{"query_id": "doc", "text": text}], chunk_words=12, recent_chunks=2)
    queries = got.queries["train"]
    assert len(queries) == len(text) // 12 - 5
    for query in queries:
        first = 12 * (int(query["query_id"].removeprefix("doc#")) - 2)
        assert query["query"] + query["answers"][0] == text[first : first + 48]


def test_long_text_that_is_too_short_is_rejected_with_what_it_lacks(tmp_path):
    rows = [{"query_id": f"doc{count}", "text": "word " * count} for count in (80, 81)]
    got = read_layout(tmp_path, "lrlm", train=rows, chunk_words=10)
    assert [row.reason for row in got.rejected] == [
        "only 8 chunks of 10 words; with 4 recent chunks a long text needs at least 9: lower chunk_words or "
        "recent_chunks of the source, or leave the text out"
    ]
    assert [(query["query_id"], query["pool_ids"]) for query in got.queries["train"]] == [
        ("doc81#7", ["doc81#0", "doc81#1"])
    ]


def test_long_text_prompt_cuts_the_candidate_and_never_the_recent_text(tmp_path, tiny_llm):
    text = " ".join(f"fox {i}" for i in range(60))
    got = read_layout(tmp_path, "lrlm", train=[{"query_id": "doc", "text": text}], chunk_words=8)
    lm, query = load_lm(tiny_llm, tmp_path / "cache", device="cpu"), got.queries["train"][-1]
    passage = got.passages[query["pool_ids"][0]]["text"]
    whole = prompt_builder(lm, BUILTIN_TASKS["lrlm"], tiny_llm.model_copy(update={"max_prefix_tokens": 4096}))
    alone, both = (len(whole.prefix(query["query"], given, []).ids) for given in ([], [passage]))
    for room in (both, both - 1, (alone + both) // 2):
        builder = prompt_builder(lm, BUILTIN_TASKS["lrlm"], tiny_llm.model_copy(update={"max_prefix_tokens": room}))
        prefix = builder.prefix(query["query"], [passage], [])
        assert len(prefix.ids) <= room and prefix.passage_cut == (room < both) and not prefix.query_cut
        assert lm.tokenizer.decode(prefix.ids).endswith(f"\n{query['query']}")
