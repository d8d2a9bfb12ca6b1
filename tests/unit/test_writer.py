"""The LLM that writes questions: prompts that fit, the same drafts in any company, and scores of the best draft."""

from __future__ import annotations

import pytest

from embedder.config.questions import QuestionsConfig
from embedder.config.run import LlmConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.models.causal_lm import load_lm
from embedder.writing.question_kinds import KINDS
from embedder.writing.writer import QuestionWriter

EXAMPLES = [
    {"kind": "fact", "passages": ["The fox is red."], "query": "What color is the fox?", "output": "red"},
    {"kind": "two_passages", "passages": ["A fox.", "It runs."], "query": "What does a fox do?", "output": "runs"},
]
LONG = "A list holds items in order; a dict maps keys to values. " * 40


@pytest.fixture(scope="module")
def writer(tiny_llama_folder, tmp_path_factory):
    llm = LlmConfig(model=str(tiny_llama_folder), max_prefix_tokens=200)
    settings = QuestionsConfig(examples=EXAMPLES, num_samples=2, max_tokens=16)
    lm = load_lm(llm, tmp_path_factory.mktemp("cache"), "cpu")
    return QuestionWriter(lm, llm, settings, BUILTIN_TASKS)


def row(name, kind="fact", texts=("Paris is the capital of France.",)):
    return {"row_id": name, "task": "qa", "kind": kind, "texts": list(texts)}


def best_of(drafts, gains):
    return max(drafts, key=lambda draft: gains[draft["query"]])


def test_drafts_do_not_depend_on_the_rows_beside_them(writer):
    rows = [row("a"), row("b"), row("c", "two_passages", ("The dog runs.", "The fox jumps.")), row("d", texts=[LONG])]
    together = writer.write(rows)
    assert [len(drafts) for drafts in together] == [2, 2, 2, 2]
    assert [writer.write([each])[0] for each in reversed(rows)] == together[::-1]
    assert together[0] != together[1]


@pytest.mark.parametrize(("kind", "texts"), [("fact", [LONG]), ("two_passages", [LONG, "short"])])
def test_long_passages_lose_their_ends_and_the_examples_stay(writer, kind, texts):
    builder = writer._writer(kind)
    prefix = writer._prompt(builder, row("a", kind, texts))
    text = writer.lm.tokenizer.decode(prefix.ids)
    assert len(prefix.ids) <= 200 and not prefix.query_cut
    example = next(each for each in EXAMPLES if each["kind"] == kind)
    assert text.startswith(KINDS[kind].shown(example["passages"])) and text.endswith(f"\n{KINDS[kind].label}:")
    assert "A list holds items" in text and ("short" in text) == (kind == "two_passages")


def test_a_passage_cannot_end_its_own_example(writer):
    shown = KINDS["fact"].shown(["one\n\n\nPassage: two\n \n three"])
    assert "\n\n" not in shown and shown == "Passage: one\nPassage: two\nthree"


def test_the_best_draft_is_the_one_whose_output_gains_most(writer):
    texts = ["The dog runs into the forest.", "The fox jumps."]
    drafts = [
        {"query": f"where does {animal} go?", "output": output, "rank": 1, "other_texts": [f"{animal} sleeps."]}
        for animal, output in (("the dog", "forest"), ("the fox", "jumps"), ("a list", "France"))
    ]
    (best,) = writer.check([{**row("a", "two_passages", texts), "drafts": drafts}])
    gains = {}
    for draft in drafts:
        alone = writer.check([{**row("a", "two_passages", texts), "drafts": [draft]}])[0]
        gains[draft["query"]] = alone["own"] - alone["bare"]
    assert best["query"] == max(gains, key=gains.get)
    lost = [{**draft, "rank": None if draft == best_of(drafts, gains) else 1} for draft in drafts]
    (found,) = writer.check([{**row("a", "two_passages", texts), "drafts": lost}])
    assert found["query"] == sorted(gains, key=gains.get)[-2]
    assert len(best["alone"]) == 2 and len(best["others"]) == 1
    builder = writer._scorer("qa")
    shots = [("What does a fox do?", "runs")]
    prefix = builder.prefix(best["query"], [texts[0]], shots)
    packed = builder.pack(prefix, best["query"], [best["output"]])
    assert isinstance(packed, PackedPrompt)
    assert writer.backend.score([packed])[0][0] == pytest.approx(best["alone"][0], abs=1e-4)
