"""The gradient of a large batch, encoded twice in chunks: that of one graph, in the memory of one chunk."""

from __future__ import annotations

import pytest
import torch

from embedder.models.encoder import load_encoder
from embedder.training.gradient import accumulate_gradient, embed
from embedder.training.token_batches import TokenLimits, token_batches
from tests.unit.bare_network import BareNetwork

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "into", "a", "forest"]
TEXTS = [" ".join(WORDS[i % 7 : i % 7 + 1 + i % 5]) for i in range(40)]
"""35 different ones."""
ONE = torch.ones(())
ONE_GRAPH = TokenLimits(batch_tokens=64, chunk_tokens=None)


def contrast(vectors):
    """Every vector is told from all the others, so that a vector's gradient depends on all of them."""
    score = vectors @ vectors.T / 0.2
    return torch.logsumexp(score, dim=1).mean() - score[:, 0].mean() + vectors[:7].sum()


def gradient(encoder, memory, *, seed=None):
    """The loss and the gradient of all weights as one vector."""
    network = BareNetwork(encoder)
    encoder.zero_grad()
    batches = token_batches(encoder, encoder.tokenize(TEXTS), memory)
    loss = accumulate_gradient(network, batches, contrast, ONE, seed)
    parts = [weight.grad.flatten() for weight in encoder.parameters() if weight.grad is not None]
    return float(loss), torch.cat(parts), network


@pytest.mark.parametrize("tokens", [64, 100, 200])
def test_gradient_and_loss_of_chunks_are_those_of_one_graph(tiny_encoder, tokens):
    encoder = load_encoder(tiny_encoder, device="cpu")
    loss, expected, _ = gradient(encoder, ONE_GRAPH)
    chunked, found, network = gradient(encoder, TokenLimits(batch_tokens=64, chunk_tokens=tokens))
    assert chunked == pytest.approx(loss, abs=1e-6)
    assert expected.abs().max() > 1e-2
    assert (found - expected).abs().max() < 3e-6 * expected.abs().max()
    assert network.backwards > 3


@pytest.mark.parametrize("tokens", [None, 64])
def test_gradient_is_that_of_the_weighted_mean_and_the_losses_come_back_unweighted(tiny_encoder, tokens):
    encoder = load_encoder(tiny_encoder, device="cpu")
    memory, rows = TokenLimits(batch_tokens=64, chunk_tokens=tokens), encoder.tokenize(TEXTS)
    weights = torch.arange(len(TEXTS)) / 7
    batches = token_batches(encoder, rows, memory)
    losses = accumulate_gradient(BareNetwork(encoder), batches, lambda vectors: vectors[:, 0], weights)
    found = torch.cat([weight.grad.flatten() for weight in encoder.parameters() if weight.grad is not None])
    vectors = encoder(rows)
    assert not losses.requires_grad and torch.allclose(losses, vectors[:, 0], atol=1e-6)
    encoder.zero_grad()
    (vectors[:, 0] * weights).mean().backward()
    expected = torch.cat([weight.grad.flatten() for weight in encoder.parameters() if weight.grad is not None])
    assert (found - expected).abs().max() < 3e-6 * expected.abs().max()


def test_gradient_of_a_batch_within_the_budget_encodes_it_once(tiny_encoder):
    encoder = load_encoder(tiny_encoder, device="cpu")
    _, _, network = gradient(encoder, TokenLimits(batch_tokens=64, chunk_tokens=1000))
    assert network.backwards == 1
    assert network.encoded == len(set(TEXTS))
    _, _, network = gradient(encoder, TokenLimits(batch_tokens=64, chunk_tokens=64))
    assert network.encoded == 2 * len(set(TEXTS))


def test_gradient_of_a_repeated_text_is_that_of_all_its_uses(tiny_encoder):
    encoder = load_encoder(tiny_encoder, device="cpu")
    encoder.zero_grad()
    contrast(encoder(encoder.tokenize(TEXTS))).backward()
    expected = torch.cat([weight.grad.flatten() for weight in encoder.parameters() if weight.grad is not None])
    for tokens in (None, 64):
        _, found, _ = gradient(encoder, TokenLimits(batch_tokens=64, chunk_tokens=tokens))
        assert (found - expected).abs().max() < 3e-6 * expected.abs().max()


def test_gradient_with_dropout_drops_in_the_second_pass_what_the_first_one_dropped(tiny_encoder):
    encoder = load_encoder(tiny_encoder, device="cpu", dropout=0.3).train()
    loss, expected, _ = gradient(encoder, ONE_GRAPH, seed=7)
    chunked, found, _ = gradient(encoder, TokenLimits(batch_tokens=64, chunk_tokens=64), seed=7)
    assert chunked == pytest.approx(loss, abs=1e-6)
    assert (found - expected).abs().max() < 3e-6 * expected.abs().max()
    other, _, _ = gradient(encoder, ONE_GRAPH, seed=8)
    assert abs(other - loss) > 1e-3


def test_gradient_keeps_the_activations_of_one_chunk_at_a_time(tiny_encoder):
    """Counted exactly, as the bytes autograd keeps between two backward passes."""
    encoder = load_encoder(tiny_encoder, device="cpu")

    def kept(memory, texts):
        network = BareNetwork(encoder)
        batches = token_batches(encoder, encoder.tokenize(texts), memory)
        with network.counting_bytes():
            accumulate_gradient(network, batches, lambda vectors: (vectors @ vectors[0]).sum(), ONE)
        return network.most_bytes

    many = [f"{text} {i}" for i in range(10) for text in TEXTS]
    chunks = TokenLimits(batch_tokens=64, chunk_tokens=64)
    assert kept(ONE_GRAPH, many) > 8 * kept(ONE_GRAPH, TEXTS)
    assert kept(chunks, many) < 1.5 * kept(chunks, TEXTS)
    assert kept(chunks, many) < kept(ONE_GRAPH, many) / 20


def test_embed_gives_the_vectors_of_the_encoder_without_a_graph(tiny_encoder):
    encoder = load_encoder(tiny_encoder, device="cpu")
    rows = encoder.tokenize(TEXTS)
    found = embed(BareNetwork(encoder), token_batches(encoder, rows, ONE_GRAPH))
    assert not found.requires_grad
    assert torch.allclose(found, encoder(rows), atol=1e-6)
