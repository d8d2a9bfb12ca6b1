"""The encoder: the same vector alone, in a batch, in any order, and in sentence-transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedder.config.tasks import BUILTIN_TASKS
from embedder.models.encoder import encode, encode_prompted, length_batches, load_encoder, pool
from embedder.models.encoder_export import export_encoder

TEXTS = [
    "The quick brown fox",
    "Paris",
    "A list holds items in order; a dict maps keys to values; a set holds each item once. " * 9,
    "é 日本",
    "Speaker 1: where is the station?\nSpeaker 2: behind the old bridge",
    "",
    "Paris",
]


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return load_encoder(tiny_encoder, device="cpu")


def test_encoder_vector_is_the_same_alone_in_a_batch_and_in_any_order(encoder):
    together = encode_prompted(encoder, TEXTS)
    for i, text in enumerate(TEXTS):
        np.testing.assert_allclose(encode_prompted(encoder, [text])[0], together[i], atol=1e-5)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(TEXTS))
        np.testing.assert_allclose(encode_prompted(encoder, [TEXTS[i] for i in order]), together[order], atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [64, 100_000])
def test_encoder_vector_does_not_depend_on_the_token_budget(encoder, tiny_encoder, batch_tokens):
    other = load_encoder(tiny_encoder.model_copy(update={"batch_tokens": batch_tokens}), device="cpu")
    np.testing.assert_allclose(encode_prompted(other, TEXTS), encode_prompted(encoder, TEXTS), atol=1e-5)


def test_encoder_vectors_have_length_one_and_the_models_width(encoder):
    vectors = encode_prompted(encoder, TEXTS)
    assert (vectors.shape, vectors.dtype, encoder.dimension) == ((7, 32), np.float32, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_encode_of_an_empty_list_has_no_vectors(encoder):
    assert encode_prompted(encoder, []).shape == (0, 32)


@pytest.mark.parametrize("side", ["query", "passage"])
def test_encode_puts_the_instruction_of_the_side_before_each_text(encoder, side):
    task = BUILTIN_TASKS["qa"]
    found = encode(encoder, TEXTS[:2], task, side)
    expected = encode_prompted(encoder, [task.instruction(side) + text for text in TEXTS[:2]])
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found - encode_prompted(encoder, TEXTS[:2])).max() > 1e-3


def test_encoder_cuts_a_long_text_at_its_end(encoder):
    row = encoder.tokenize([TEXTS[2]])[0]
    assert len(row) == 64
    assert row[:-1] == encoder.tokenizer(TEXTS[2])["input_ids"][:63]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_export_encoder_gives_the_same_vectors_in_sentence_transformers(tiny_encoder, tmp_path, pooling):
    encoder = load_encoder(tiny_encoder.model_copy(update={"pooling": pooling}), device="cpu")
    export_encoder(encoder, tmp_path / "model", BUILTIN_TASKS)
    other = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert set(other.prompts) >= {f"{task}_{side}" for task in BUILTIN_TASKS for side in ("query", "passage")}
    for name, task in BUILTIN_TASKS.items():
        for side in ("query", "passage"):
            found = other.encode(TEXTS, prompt_name=f"{name}_{side}")
            # The order of turns and the end that stays are ours; sentence-transformers has the instruction.
            plain = task.model_copy(update={"query_cut": "end"})
            np.testing.assert_allclose(found, encode(encoder, TEXTS, plain, side), atol=1e-5)


def test_export_encoder_loads_here_again(encoder, tiny_encoder, tmp_path):
    export_encoder(encoder, tmp_path / "model", BUILTIN_TASKS)
    again = load_encoder(tiny_encoder.model_copy(update={"model": str(tmp_path / "model")}), device="cpu")
    np.testing.assert_allclose(encode_prompted(again, TEXTS), encode_prompted(encoder, TEXTS), atol=1e-6)


STATES = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [50.0, 50.0]], [[1.0, 0.0], [4.0, 2.0], [1.0, 4.0]]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("cls", [[1.0, 2.0], [1.0, 0.0]]),
        ("mean", [[2.0, 4.0], [2.0, 2.0]]),
        ("last", [[3.0, 6.0], [1.0, 4.0]]),
    ],
)
def test_pool_worked_by_hand(pooling, expected):
    assert pool(STATES, MASK, pooling).tolist() == expected


def test_pool_refuses_an_unknown_pooling():
    with pytest.raises(ValueError, match="use cls, mean or last"):
        pool(STATES, MASK, "max")


@pytest.mark.parametrize(
    ("lengths", "budget", "batches"),
    [
        ([3, 1, 2], 100, [[1, 2, 0]]),
        ([3, 1, 2], 4, [[1, 2], [0]]),
        ([3, 1, 2], 1, [[1], [2], [0]]),
        ([5, 5, 5], 10, [[0, 1], [2]]),
        ([], 10, []),
    ],
)
def test_length_batches_worked_by_hand(lengths, budget, batches):
    assert list(length_batches(lengths, budget)) == batches


def test_load_encoder_sets_the_dropout_asked_for(tiny_encoder):
    for rate in (0.0, 0.3):
        encoder = load_encoder(tiny_encoder, device="cpu", dropout=rate)
        assert not encoder.training
        rates = {module.p for module in encoder.modules() if isinstance(module, torch.nn.Dropout)}
        assert rates == {rate}
