"""What a text that is too long loses: by task and side, so that the question of a conversation stays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.config.cutting import PromptedText, last_turn_first, prompted_text
from embedder.config.run import EncoderConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.index.bundle import instructions
from embedder.models.encoder import encode, load_encoder
from embedder.training.cross_encoder import CrossEncoder, bare_query
from tests.unit.judges import quick
from tests.unit.tiny_folders import bert_folder, byte_level, llama_folder, wrapped

TALK = "".join(f"user: tell me about bridge {i}\nassistant: it is near the market.\n" for i in range(30))
QUESTIONS = ("user: what does it cost?", "user: who built it?")
TOLD = "Find: "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bert_folder(tmp_path_factory.mktemp("bert") / "b", max_position_embeddings=300)


@pytest.fixture(scope="module", params=["bert", "llama_last"])
def encoder(request, folder, tmp_path_factory):
    if request.param == "bert":
        return load_encoder(EncoderConfig(model=str(folder), pooling="mean", max_tokens=256), device="cpu")
    tokenizer = wrapped(byte_level(["<s>", "</s>"]), "<s> $A", ["<s>"], bos_token="<s>", eos_token="</s>")
    model = llama_folder(tmp_path_factory.mktemp("llama") / "l", tokenizer)
    return load_encoder(EncoderConfig(model=str(model), pooling="last", max_tokens=256), device="cpu")


@pytest.mark.parametrize("task", ["convsearch", "chat", "lrlm"])
def test_encode_keeps_the_last_turn_of_a_long_conversation(encoder, task):
    """case 29-last-turn-cut"""
    vectors = encode(encoder, [TALK + question for question in QUESTIONS], BUILTIN_TASKS[task], "query")
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-6


@quick
@given(st.text(st.sampled_from("ab c.\n日é"), max_size=900), st.sampled_from([TOLD, "", "long " * 60]))
def test_tokenize_keeps_instruction_end_and_special_tokens_of_a_text_that_loses_its_beginning(encoder, text, told):
    most = encoder.config.max_tokens
    whole = encoder.tokenizer(told + text)["input_ids"]
    (row,), (is_cut,) = encoder.tokenize_and_tell([PromptedText(told, text, keeps_end=True)])
    assert is_cut == (len(whole) > most)
    assert len(row) == min(most, len(whole))
    alone = encoder.tokenizer(told)["input_ids"]
    shared = next((i for i, pair in enumerate(zip(alone, whole, strict=False)) if len(set(pair)) > 1), len(alone))
    kept = min(shared, most // 2)
    assert row == (whole[:kept] + whole[kept - most :] if is_cut else whole)


def test_tokenize_tells_which_texts_were_too_long_and_by_default_cuts_their_end(encoder):
    texts = ["short", TALK, PromptedText(TOLD, TALK), PromptedText("", "")]
    rows, is_cut = encoder.tokenize_and_tell(texts)
    assert is_cut == [False, True, True, False]
    assert [len(row) for row in rows[1:3]] == [256, 256]
    beginning = encoder.tokenizer(TOLD + TALK)["input_ids"][:200]
    assert rows[2][:200] == beginning


def test_last_turn_first_turns_lines_round_and_leaves_a_single_one_alone():
    assert last_turn_first("a\nb\r\nc\n \n") == "c\nb\na"
    assert last_turn_first(" one line \n") == " one line \n"
    assert last_turn_first("") == ""


def test_prompted_text_is_the_same_for_a_task_and_for_the_manifest_of_a_bundle():
    told = instructions(BUILTIN_TASKS)
    for name, spec in BUILTIN_TASKS.items():
        for side in ("query", "passage"):
            assert told[name].prompted(side, "a\nb") == spec.prompted(side, "a\nb")
    assert BUILTIN_TASKS["convsearch"].prompted("query", "a\nb").text == "b\na"
    assert BUILTIN_TASKS["convsearch"].prompted("passage", "a\nb").text == "a\nb"
    assert [BUILTIN_TASKS[name].prompted("query", "a").keeps_end for name in ("qa", "chat")] == [False, True]
    long = prompted_text("I: ", "text", "start")
    assert (str(long), len(long)) == ("I: text", 7)


def test_cross_encoder_reads_the_question_of_a_long_conversation(folder):
    encoder = load_encoder(EncoderConfig(model=str(folder), pooling="cls", max_tokens=64), device="cpu")
    reader = CrossEncoder(encoder.backbone, encoder.tokenizer, max_tokens=64, batch_tokens=512)
    for task, lost in (("convsearch", False), ("chat", False), ("qa", True)):
        queries = [bare_query(BUILTIN_TASKS[task], TALK + question) for question in QUESTIONS]
        first, second = reader.tokenize([(query, "it costs a lot") for query in queries])
        assert (first == second) is lost
        assert len(first) <= 65
