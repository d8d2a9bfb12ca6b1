"""Rewards without a desired output: the LLM's own answers and its judgement, on groups whose rows have no answers."""

from __future__ import annotations

import pytest

from embedder.config.label import LabelConfig
from embedder.config.tasks import BUILTIN_TASKS, VERDICTS, WorkedAnswer
from embedder.labelling.labeller import RewardLabeller
from embedder.labelling.own_answers import evidence_prompt
from embedder.labelling.prompts import prompt_builder, shot_pool
from embedder.labelling.rewards import mean_gain, task_rewards
from embedder.models.causal_lm import load_lm

QA = BUILTIN_TASKS["qa"]
EXAMPLES = [WorkedAnswer(query=f"which city {i}", answer=f"Paris {i}") for i in range(3)]
TASKS = {
    "own": QA.model_copy(update={"reward": "own_answers", "worked_examples": EXAMPLES}),
    "judged": QA.model_copy(update={"reward": "judgement"}),
}
TEXTS = ["the fox jumps over the city", "the capital is Paris", "a list of forests and a dog", "the quick brown fox"]


def group(task="own", number=0, order=(0, 1, 2, 3), **changed):
    return {
        "task": task,
        "dataset": "d",
        "query_id": f"{task}-{number}",
        "query": f"which city is the capital {number}",
        "answers": [],
        "candidate_ids": [f"p{i}" for i in order],
        "candidate_texts": [TEXTS[i] for i in order],
        "relevance": [int(i == 1) for i in order],
        **changed,
    }


@pytest.fixture(scope="module")
def labeller(tiny_llm, tmp_path_factory):
    lm = load_lm(tiny_llm, tmp_path_factory.mktemp("cache"), device="cpu")
    return RewardLabeller(lm, tiny_llm, LabelConfig(num_samples=4), TASKS, {"d": shot_pool([], TASKS["own"], 0)})


def test_own_answers_reward_rows_without_an_answer_by_the_gain_of_what_the_llm_writes(labeller):
    (row,) = labeller.label([group()], "print")
    assert (row["error"], row["reward"], row["answers"]) == (None, "own_answers", [])
    assert 1 <= len(row["outputs"]) <= 4 == len(row["rewards"])
    assert {len(row["outputs"]), len(row["output_tokens"])} == {len(row["base_scores"]), *map(len, row["scores"])}
    gains = [mean_gain(row["base_scores"], scores) for scores in row["scores"]]
    exact = TASKS["own"].model_copy(update={"reward_margin": 0.0})
    assert task_rewards(exact, row["base_scores"], row["scores"], None) == gains
    assert row["rewards"] == task_rewards(TASKS["own"], row["base_scores"], row["scores"], None)


def test_own_answers_that_are_repeated_are_read_once_and_count_each_time(labeller, monkeypatch):
    lm, read, score = labeller.lm, [], labeller.backend.score
    drawn = [lm.tokens(f" {text}") for text in ("Paris", "London", "Paris", "")]
    monkeypatch.setattr(labeller.backend, "sample", lambda prefixes, *_: [drawn for _ in prefixes])
    monkeypatch.setattr(labeller.backend, "score", lambda given: read.append(given) or score(given))
    (row,) = labeller.label([group()], "print")
    assert row["outputs"] == ["Paris", "London", "Paris"]
    assert {len(prompt.outputs) for prompt in read[0]} == {2}
    for scores in (row["base_scores"], *row["scores"]):
        assert scores[0] == scores[2] != scores[1]


def test_own_answers_where_the_llm_writes_nothing_say_so(labeller, monkeypatch):
    monkeypatch.setattr(labeller.backend, "sample", lambda prefixes, *_: [[[]] * 4 for _ in prefixes])
    (row,) = labeller.label([group()], "print")
    assert row["rewards"] is None and row["error"] == "the LLM wrote no answer with the candidates before it"


def test_own_answers_are_the_same_in_whatever_order_the_candidates_come(labeller):
    """Known positives stand first in a group; if the LLM read them first, their place would say which they are."""
    (one,) = labeller.label([group()], "print")
    (other,) = labeller.label([group(order=(3, 1, 0, 2))], "print")
    assert one["outputs"] == other["outputs"]
    assert dict(zip(one["candidate_ids"], one["rewards"], strict=True)) == pytest.approx(
        dict(zip(other["candidate_ids"], other["rewards"], strict=True)), abs=0.101
    )


def test_evidence_of_long_candidates_holds_a_part_of_each(labeller):
    builder = prompt_builder(labeller.lm, TASKS["own"], labeller.llm)
    words = ["fox", "dog", "forest", "list"]
    long = group(candidate_texts=[" ".join([word] * 200) for word in words])
    prefix = evidence_prompt(builder, long, [], 0)
    assert len(prefix.ids) <= labeller.llm.max_prefix_tokens and not prefix.passage_cut
    text = labeller.lm.tokenizer.decode(prefix.ids)
    assert min(text.count(word) for word in words) > 10
    # A short one loses nothing to the long ones.
    mixed = group(candidate_texts=[TEXTS[1], *long["candidate_texts"][1:]])
    assert TEXTS[1] in labeller.lm.tokenizer.decode(evidence_prompt(builder, mixed, [], 0).ids)


def test_evidence_is_put_in_another_order_for_another_query(labeller):
    builder = prompt_builder(labeller.lm, TASKS["own"], labeller.llm)
    prompts = [labeller.lm.tokenizer.decode(evidence_prompt(builder, group(number=i), [], 0).ids) for i in range(8)]
    assert len({min(TEXTS, key=prompt.index) for prompt in prompts}) > 1


def test_judgement_is_the_expected_verdict_of_the_llm(labeller):
    (row,) = labeller.label([group("judged")], "print")
    assert (row["error"], row["outputs"]) == (None, list(VERDICTS))
    assert len(row["rewards"]) == 4 and all(0 < reward < 1 for reward in row["rewards"])
    assert len(set(row["rewards"])) > 1
    assert row["rewards"] == task_rewards(TASKS["judged"], row["base_scores"], row["scores"], row["output_tokens"])


def test_judgement_asks_with_a_prompt_of_its_own_and_the_chat_settings_of_the_task(labeller):
    chat = TASKS["judged"].template.model_copy(update={"chat": True, "chat_date": "2026-02-02"})
    asked = TASKS["judged"].model_copy(update={"template": chat}).reward_template
    assert (asked.chat, asked.chat_date) == (True, "2026-02-02")
    assert asked.input == TASKS["judged"].judgement_template.input
    assert TASKS["own"].reward_template == TASKS["own"].template


def test_rewards_from_answers_still_need_them(labeller):
    tasks = {"own": TASKS["own"].model_copy(update={"reward": "gain"})}
    (row,) = RewardLabeller(labeller.lm, labeller.llm, LabelConfig(), tasks, {}).label([group()], "print")
    assert row["error"] == "no answer"


def test_worked_examples_stand_in_for_rows_without_answers_alone():
    rows = [{"query_id": "q", "query": "who", "answers": []}]
    assert {(query, answer) for _, query, answer in shot_pool(rows, TASKS["own"], 0)} == {
        (each.query, each.answer) for each in EXAMPLES
    }
    assert shot_pool([{**rows[0], "answers": ["me"]}], TASKS["own"], 0) == [("q", "who", "me")]
