"""The LLM's part, with a tiny one: prompts against plain scoring, greedy answers against generate, and what fails."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from embedder.config.evaluate import EvaluateConfig
from embedder.config.prepare import Source
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.dataset import read_source
from embedder.data.records import write_table
from embedder.evaluation.base import Passage, Question, Reply
from embedder.evaluation.evaluations import EVALUATIONS, evaluation_of
from embedder.evaluation.judge import LlmJudge, fitting_prefix
from embedder.evaluation.measurements import DatasetValues, ask_about
from embedder.evaluation.replies import JUDGED, judge_fingerprint
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.prompts import choose_shots, prompt_builder
from embedder.models.causal_lm import load_lm
from tests.unit.judges import exact_model, plain_scores
from tests.unit.test_dataset import lines

POOLS = {"d": [(f"s{i}", f"which city {i}", f"Paris {i}") for i in range(4)]}
SETTINGS = EvaluateConfig(max_output_tokens=24)
FOX = ["the fox jumps over the lazy dog", "Paris is the capital", "a list holds items in order"]


def question(evaluation, number=0, passages=(), **fields):
    known = {
        "task": evaluation if evaluation in BUILTIN_TASKS else "qa",
        "dataset": "d",
        "query_id": f"q{number}",
        "query": f"which city is the capital {number}",
        "answers": [f"Paris {number}"],
        "options": None,
        "category": None,
    }
    found = [Passage(f"p{text}", FOX[text], text) for text in passages]
    return Question(evaluation=evaluation, **{**known, **fields}, passages=found)


QUESTIONS = [
    question("qa", 0),
    question("qa", 0, [1]),
    question("qa", 1, [0, 2]),
    question("choice", 2, [2, 1], options=["a", "Paris 2", "c"]),
    question("chat", 3, [2, 0]),
    question("lrlm", 4, [1, 0]),
    question("icl", 5, [0, 1], options=["no", "Paris 5", "Paris"]),
    question("icl", 6, [0]),
]


@pytest.fixture(scope="module")
def judge(tiny_llm, tmp_path_factory):
    lm = load_lm(tiny_llm, tmp_path_factory.mktemp("cache"), device="cpu")
    return LlmJudge(lm, tiny_llm, BUILTIN_TASKS, SETTINGS, POOLS)


def rows_of(questions):
    return [one.row("llm") for one in questions]


def replies(judge, questions):
    rows = rows_of(questions)
    found = {row["row_id"]: row for row in judge.judge(rows)}
    return [found[row["row_id"]] for row in rows]


def prompt_of(judge, one):
    """The same by hand: shots, passages in the evaluation's order, query; and the outputs."""
    evaluation = EVALUATIONS[one.evaluation]
    spec = BUILTIN_TASKS[one.task]
    builder = replace(prompt_builder(judge.lm, spec, judge.llm, evaluation.template(spec)), max_output_tokens=24)
    shots = choose_shots(POOLS["d"], one.query, spec.shots, 0) if one.evaluation == "qa" else []
    ask = evaluation.ask(one)
    prefix = builder.prefix(ask.query, evaluation.arrange(one.passages), shots).ids
    return PackedPrompt(prefix, [builder.output(text) for text in ask.outputs])


def test_judge_likelihoods_are_those_of_the_plain_sequences(judge, tiny_llm):
    prompts = [prompt_of(judge, one) for one in QUESTIONS]
    expected = plain_scores(exact_model(tiny_llm.model), prompts)
    for row, prompt, values in zip(replies(judge, QUESTIONS), prompts, expected, strict=True):
        assert row["error"] is None
        assert row["likelihoods"] == pytest.approx(values, abs=1e-4)
        assert row["tokens"] == [len(output) for output in prompt.outputs]


def test_judge_answers_are_greedy_and_end_with_the_line(judge):
    for one, row in zip(QUESTIONS, replies(judge, QUESTIONS), strict=True):
        ask = EVALUATIONS[one.evaluation].ask(one)
        if not ask.written_tokens:
            assert row["text"] is None
            continue
        ids = torch.tensor([prompt_of(judge, one).prefix])
        options = {"do_sample": False, "max_new_tokens": ask.written_tokens, "pad_token_id": 0}
        whole = judge.lm.model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :]
        assert row["text"] == judge.lm.tokenizer.decode(whole, skip_special_tokens=True).split("\n")[0].strip()


def test_judge_an_answer_ends_where_its_line_does(judge, monkeypatch):
    """The token that ends the line may begin with the answer's last letter."""
    (last,) = judge.lm.tokens("x")
    texts = judge.lm.tokenizer.batch_decode([[token] for token in range(600)])
    monkeypatch.setitem(vars(judge.lm), "token_texts", [*texts[:last], "x\n", *texts[last + 1 :]])
    given = []
    monkeypatch.setattr(judge.backend, "sample", lambda prefixes, seeds, how: given.append(how) or [[[last]]] * 3)
    assert [row["text"] for row in replies(judge, QUESTIONS[:3])] == ["x"] * 3
    assert last in given[0].stop_ids
    assert (given[0].num_samples, given[0].top_k, given[0].end_ids) == (1, 1, {2})


def test_judge_replies_do_not_depend_on_the_order_and_are_written_as_they_are(judge, tmp_path):
    rows = rows_of(QUESTIONS)
    first = judge.judge(rows)
    assert judge.judge(rows[::-1]) == first
    write_table(first, JUDGED, tmp_path / "judged.parquet")
    assert judge.judge([]) == []


def test_judge_that_does_not_let_write_scores_the_same(judge, tiny_llm):
    silent = LlmJudge(judge.lm, tiny_llm, BUILTIN_TASKS, SETTINGS.model_copy(update={"generate_answers": False}), POOLS)
    for style_axes, row in zip(replies(silent, QUESTIONS), replies(judge, QUESTIONS), strict=True):
        assert style_axes["text"] is None
        assert style_axes["likelihoods"] == row["likelihoods"]


def test_judge_a_long_output_is_cut_for_all_alike(judge):
    long = question("chat", answers=["the fox and the dog run " * 20])
    (row,) = replies(judge, [long])
    assert row["tokens"] == [24]


def test_judge_what_cannot_be_asked_says_why_and_spoils_nothing_else(judge):
    bad = [
        question("chat", 1, query="a very long question " * 200),
        question("lrlm", 2, answers=[" "]),
    ]
    first, second, good = replies(judge, [*bad, QUESTIONS[0]])
    assert "needs more than the 200 of a prefix" in first["error"] and Reply.of(first) is None
    assert second["error"] == "a desired output has no token"
    assert good["error"] is None and Reply.of(good) is not None


def test_judge_exhausted_memory_costs_only_the_question_that_exhausts_it(judge, monkeypatch):
    score = judge.backend.score

    def scarce(prompts):
        if any(len(prompt.outputs) == 3 for prompt in prompts):
            raise torch.OutOfMemoryError("no memory\nmore")
        return score(prompts)

    monkeypatch.setattr(judge.backend, "score", scarce)
    rows = replies(judge, QUESTIONS)
    assert [row["error"] for row in rows if row["error"]] == ["out of memory: no memory"] * 2
    assert [row["likelihoods"] is None for row in rows] == [len(row["likelihoods"] or []) == 0 for row in rows]


def builder_for(judge, name, prefix_tokens):
    spec = BUILTIN_TASKS[name]
    return replace(prompt_builder(judge.lm, spec, judge.llm), max_prefix_tokens=prefix_tokens)


@pytest.mark.parametrize("name", ["icl", "lrlm", "chat"])
def test_fitting_prefix_passages_that_do_not_fit_are_left_out_from_the_last_of_the_ranking(judge, name):
    one = question(name, passages=[1, 0, 2])
    builder = builder_for(judge, name, 1000)
    lengths = {}
    for count in range(4):
        asked = replace(one, passages=one.passages[:count])
        lengths[count] = len(fitting_prefix(builder, EVALUATIONS[name], asked, one.query, []).ids)
    for count in (1, 2, 3):
        tight = builder_for(judge, name, lengths[count])
        prefix = fitting_prefix(tight, EVALUATIONS[name], one, one.query, [])
        expected = fitting_prefix(
            builder, EVALUATIONS[name], replace(one, passages=one.passages[:count]), one.query, []
        )
        assert prefix.ids == expected.ids
        assert prefix.passage_cut == (count < 3)


def test_fitting_prefix_the_last_passage_of_a_question_loses_its_end(judge):
    one = question("qa", passages=[1, 0])
    whole = fitting_prefix(builder_for(judge, "qa", 1000), EVALUATIONS["qa"], one, one.query, [])
    tight = fitting_prefix(builder_for(judge, "qa", len(whole.ids) - 3), EVALUATIONS["qa"], one, one.query, [])
    text = judge.lm.tokenizer.decode(tight.ids)
    assert tight.passage_cut and FOX[1] in text and FOX[0] not in text and FOX[0][:9] in text


def test_judge_fingerprint_tells_what_replies_depend_on(tiny_llm):
    def of(llm=tiny_llm, tasks=BUILTIN_TASKS, settings=SETTINGS, pools=POOLS):
        return judge_fingerprint(llm, tasks, settings, pools)("qa", "d")

    shots = {**BUILTIN_TASKS, "qa": BUILTIN_TASKS["qa"].model_copy(update={"shots": 1})}
    others = [
        of(llm=tiny_llm.model_copy(update={"max_prefix_tokens": 100})),
        of(tasks=shots),
        of(settings=SETTINGS.model_copy(update={"max_output_tokens": 8})),
        of(settings=SETTINGS.model_copy(update={"generate_answers": False})),
        of(settings=SETTINGS.model_copy(update={"seed": 1})),
        of(pools={"d": POOLS["d"][:2]}),
    ]
    assert len({of(), *others}) == 7
    assert of(settings=SETTINGS.model_copy(update={"num_actors": 9, "unit_queries": 3})) == of()
    assert of(llm=tiny_llm.model_copy(update={"batch_tokens": 64})) == of()


HAND_MADE = [
    {"query_id": "m1", "query": "2 + 2?", "options": ["3", "4"], "answers": ["4"], "category": "arithmetic"},
    {"query_id": "m2", "query": "capital of France?", "options": ["Paris", "Rome", "Bern"], "answers": ["Paris"]},
]


def test_judge_a_hand_made_file_of_multiple_choice_is_read_asked_and_judged(judge, tiny_llm, tmp_path):
    lines(tmp_path / "corpus.jsonl", [{"id": "p0", "text": FOX[1]}])
    lines(tmp_path / "test.jsonl", HAND_MADE)
    rows = read_source(Source(task="qa", dataset="d", path=tmp_path), BUILTIN_TASKS["qa"], 0).queries["test"]
    evaluation = evaluation_of("qa", "d", rows, {})
    one = DatasetValues("d", "qa", evaluation, rows, rankings={"base": {"m2": [("p0", 1.0)]}})
    settings = EvaluateConfig.model_validate({"llm_queries": 9})
    asked = ask_about([one], lambda *_: {"p0": FOX[1]}, settings, lambda *_: "llm")
    one.enter_replies(asked, {row["row_id"]: row for row in judge.judge(list(asked.rows.values()))})
    heading = "The following are multiple choice questions (with answers)"
    texts = {
        "m1": f"{heading} about arithmetic.\n\n2 + 2?\nA. 3\nB. 4\nAnswer:",
        "m2": f"Knowledge:\n{FOX[1]}\n\n{heading}.\n\ncapital of France?\nA. Paris\nB. Rome\nC. Bern\nAnswer:",
    }
    for query_id, right, letters in (("m1", 1, "AB"), ("m2", 0, "ABC")):
        prompt = PackedPrompt(judge.lm.tokens(texts[query_id]), [judge.lm.tokens(f" {letter}") for letter in letters])
        (scores,) = plain_scores(exact_model(tiny_llm.model), [prompt])
        assert one.values["log-likelihood"]["base"][query_id] == (pytest.approx(scores[right], abs=1e-4), 1.0)
        assert one.values["accuracy"]["base"][query_id] == (float(scores[right] == max(scores)), 1.0)


def test_judge_makes_a_log_likelihood_that_is_no_number_an_error_of_its_question(judge, monkeypatch):
    score = judge.backend.score

    def spoilt(prompts):
        first, *others = score(prompts)
        return [[float("nan")] * len(first), *others]

    monkeypatch.setattr(judge.backend, "score", spoilt)
    found = replies(judge, [question("qa", number) for number in range(2)])
    assert sorted(str(row["error"]) for row in found) == ["None", "a log-likelihood is not finite"]
    assert [row["likelihoods"] is None for row in found].count(True) == 1
