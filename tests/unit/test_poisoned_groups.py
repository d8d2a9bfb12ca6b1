"""One bad group is an error in its own row, and changes nothing in the others."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tokenizers import normalizers

from embedder.config.label import LabelConfig
from embedder.config.tasks import BUILTIN_TASKS, PromptTemplate
from embedder.errors import ConfigError
from embedder.labelling.labeller import MAX_CHARACTERS, RewardLabeller
from embedder.models.causal_lm import load_lm
from embedder.models.memory import BatchLimit
from tests.unit.test_labeller import POOL, TASKS, group, same_labels

HUGE = "fox " * 2_500_000
"""10 MB."""

GOOD = [group("qa", i, candidates=1 + i % 3) for i in range(4)]


@pytest.fixture(scope="module")
def lm(tiny_llm, tmp_path_factory):
    return load_lm(tiny_llm, tmp_path_factory.mktemp("cache"), device="cpu")


@pytest.fixture(scope="module")
def labeller(lm, tiny_llm):
    return RewardLabeller(lm, tiny_llm, LabelConfig(num_samples=4), TASKS, POOL)


@pytest.fixture(scope="module")
def expected(labeller):
    return labeller.label(GOOD, "print")


POISON = {
    "an empty candidate": ({"candidate_texts": ["one", " \n", "two"]}, "candidate 1 is empty"),
    "no candidate": ({"candidate_texts": []}, "no candidates"),
    "an empty query": ({"query": "\t"}, "the query is empty"),
    "no answer": ({"answers": []}, "no answer"),
    "an empty desired output": ({"answers": ["", "Paris"]}, "the desired output is empty"),
    "a query that is too long": ({"query": "fox " * 300}, "the query has no token, or needs more than the 200"),
    "a huge query": ({"query": HUGE}, "the query has 10,000,000 characters, more than 1,000,000"),
    "a huge candidate": ({"candidate_texts": ["a", "b", HUGE]}, "candidate 2 has 10,000,000 characters"),
    "a huge desired output": ({"answers": [HUGE]}, "the desired output has 10,000,000 characters"),
}


@pytest.mark.parametrize(("change", "error"), POISON.values(), ids=POISON.keys())
@pytest.mark.parametrize("position", [0, 2, 4])
def test_labeller_says_what_is_wrong_with_a_poisoned_group_and_labels_the_others(
    labeller, expected, change, error, position
):
    bad = {**group("qa", 9), **change}
    rows = labeller.label([*GOOD[:position], bad, *GOOD[position:]], "print")
    poisoned = rows.pop(position)
    assert poisoned["error"].startswith(error)
    assert [poisoned[name] for name in ("rewards", "outputs", "base_scores", "scores")] == [None] * 4
    assert {name: poisoned[name] for name in bad} == bad
    for row, good in zip(rows, expected, strict=True):
        same_labels(row, good)


def test_labeller_a_candidate_of_which_nothing_fits_is_named(labeller, expected):
    """The query grows until the room left is less than a letter of three tokens, but not less than one of one."""
    for length in range(60, 200):
        bad = {**group("qa", 9), "query": "fox " * length, "candidate_texts": ["a", "日本" * 99, "a"]}
        (row,) = labeller.label([bad], "print")
        if row["error"]:
            break
        assert row["truncated"] == 1
    assert row["error"] == "candidate 1: nothing of it fits into 200 prefix tokens"
    *rows, again = labeller.label([*GOOD, bad], "print")
    assert again == row
    for row, good in zip(rows, expected, strict=True):
        same_labels(row, good)


def test_labeller_a_candidate_that_is_cut_is_counted_and_still_rewarded(labeller):
    (row,) = labeller.label([{**group("qa", 9), "candidate_texts": ["a", "fox " * 4000, "fox " * 4000]}], "print")
    assert (row["error"], row["truncated"], len(row["rewards"])) == (None, 2, 3)
    assert row["scores"][1] == row["scores"][2]


def test_labeller_as_many_characters_as_are_allowed_are_read(labeller):
    long = "a" * MAX_CHARACTERS
    (row,) = labeller.label([{**group("likely", 9), "candidate_texts": [long], "answers": [long]}], "print")
    assert (row["error"], row["truncated"]) == (None, 1)


def test_labeller_texts_without_a_token_are_refused(lm, tiny_llm, labeller):
    """Some tokenizers delete characters that Python does not count as blank."""
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    bare = PromptTemplate(context="{passage}\n", input="{query}", output="{answer}")
    tasks = {"bare": BUILTIN_TASKS["lrlm"].model_copy(update={"template": bare})}
    deaf = RewardLabeller(replace(lm, tokenizer=tokenizer), tiny_llm, LabelConfig(num_samples=4), tasks, {})
    groups = [group("bare", i) for i in range(3)]
    expected = deaf.label(groups, "print")
    changes = [{"answers": ["\u200b"]}, {"query": "\u200b"}, {"candidate_texts": ["\u200b"]}]
    rows = deaf.label([*groups, *({**group("bare", 9), **change} for change in changes)], "print")
    assert rows[3]["error"] == "the desired output has no token"
    assert rows[4]["error"].startswith("the query has no token")
    assert rows[5]["error"] is None
    for row, good in zip(rows, expected, strict=False):
        same_labels(row, good)


class SmallMemory:
    """A forward pass that runs out of memory above so many tokens at once."""

    def __init__(self, forward, most, message="CUDA out of memory. Tried\nto allocate", kind=torch.OutOfMemoryError):
        self.forward, self.most, self.message, self.kind, self.refused = forward, most, message, kind, 0

    def __call__(self, input_ids, **further):
        if input_ids.numel() > self.most:
            self.refused += 1
            raise self.kind(self.message)
        return self.forward(input_ids=input_ids, **further)


@pytest.fixture
def small_memory(lm, monkeypatch):
    base = lm.model.base_model

    def install(most, **given):
        memory = SmallMemory(base.forward, most, **given)
        monkeypatch.setattr(base, "forward", memory)
        return memory

    return install


def cpu_message():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**14)
    return str(caught.value)


CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"


@pytest.mark.parametrize(
    "given", [{}, {"kind": RuntimeError, "message": CUBLAS}, {"kind": RuntimeError, "message": cpu_message()}]
)
def test_labeller_batches_that_do_not_fit_are_halved_and_the_labels_stay(
    labeller, expected, small_memory, monkeypatch, given
):
    # A limit of its own: what other tests have taught the backend would leave nothing to refuse.
    monkeypatch.setattr(labeller.backend, "limit", BatchLimit("scoring"))
    memory = small_memory(220, **given)
    for row, good in zip(labeller.label(GOOD, "print"), expected, strict=True):
        same_labels(row, good)
    assert memory.refused > 1


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried\nto allocate", ""])
def test_labeller_a_group_that_alone_does_not_fit_is_an_error_and_the_others_are_labelled(
    labeller, expected, small_memory, message
):
    memory = small_memory(150, message=message)
    bad = {**group("qa", 9), "candidate_texts": ["fox " * 4000, "one", "two"]}
    pairs = labeller.pairs
    rows = labeller.label([*GOOD[:1], bad, *GOOD[1:]], "print")
    assert memory.refused > 0
    poisoned = rows.pop(1)
    assert poisoned["error"] == f"out of memory: {message.partition(chr(10))[0]}"
    assert [poisoned[name] for name in ("rewards", "scores")] == [None] * 2
    for row, good in zip(rows, expected, strict=True):
        same_labels(row, good)
    assert labeller.pairs - pairs == sum(len(good["candidate_texts"]) for good in GOOD)


def test_labeller_a_long_query_that_does_not_fit_without_candidate_is_an_error_too(labeller, expected, small_memory):
    """Here the sampling runs out of memory, not the scoring."""
    small_memory(150)
    rows = labeller.label([{**group("qa", 9), "query": "fox " * 120}, *GOOD], "print")
    assert rows[0]["error"].startswith("out of memory: CUDA")
    for row, good in zip(rows[1:], expected, strict=True):
        same_labels(row, good)


def test_labeller_an_llm_that_gives_no_numbers_rewards_nothing(tiny_llm, tmp_path):
    lm = load_lm(tiny_llm, tmp_path, device="cpu")
    lm.model.model.norm.weight.data.fill_(float("nan"))
    rows = RewardLabeller(lm, tiny_llm, LabelConfig(num_samples=4), TASKS, POOL).label(GOOD, "print")
    assert {row["error"] for row in rows} == {"a log-likelihood is not finite"}
    assert all(row["rewards"] is None for row in rows)


def test_labeller_a_chat_template_that_is_missing_stops_the_run(lm, tiny_llm):
    template = TASKS["qa"].template.model_copy(update={"chat": True})
    tasks = {"qa": TASKS["qa"].model_copy(update={"template": template})}
    with pytest.raises(ConfigError, match="no chat template"):
        RewardLabeller(lm, tiny_llm, LabelConfig(num_samples=4), tasks, POOL).label(GOOD, "print")
