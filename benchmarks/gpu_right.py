"""Whether the device computes what a CPU computes in float64: scores, samples and vectors."""

from __future__ import annotations

import copy

import torch

from benchmarks.gpu_bench import Bench, backend_of, format_name, other_scorer, random_bert, random_llama, scorer_of
from benchmarks.gpu_inputs import prompts_of, read_passages
from benchmarks.labelling_baselines import exact_scores
from embedder.config.run import SEQUENTIAL
from embedder.labelling.backends import LlmBackend
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.sampling import Sampling
from embedder.labelling.sequential_backend import SequentialBackend
from embedder.models.causal_lm import CausalLm
from embedder.models.encoder import encode_prompted, load_encoder
from embedder.models.onnx import load_inference_encoder

SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
VOCABULARY = 2048
KEY_HEADS = {"8b": 2, "7b": 4}
"""Heads of keys of the small models."""
CASES = (("8b", torch.bfloat16), ("8b", torch.float32), ("7b", torch.bfloat16))
"""The model whose heads share keys comes first, because it once fell back to plain scoring."""
MOST_NATS = {torch.float32: 1e-3, torch.bfloat16: 0.3}
"""Nats a token by which a score may be off; plain scoring in bfloat16 is off by as much."""
LEAST_COSINE = {"float32": 1 - 1e-5, "bfloat16": 0.99}
SAMPLING = Sampling(num_samples=4, max_tokens=8, temperature=1.0, top_k=50)


def right(bench: Bench) -> None:
    """The LLM with shared and with own keys, in both formats, then the encoder; fails if something is not right."""
    prompts = prompts_of(bench.units(VOCABULARY, 1)[0])[: bench.size(9, 3)]
    for name, dtype in CASES:
        llm_rows(bench, name, dtype, prompts)
    vector_rows(bench, read_passages(bench.inputs, bench.size(256, 8)))
    if bench.figures.wrong:
        raise SystemExit(f"not right: {'; '.join(bench.figures.wrong)}")


def llm_rows(bench: Bench, name: str, dtype: torch.dtype, prompts: list[PackedPrompt]) -> None:
    """How far the chosen scorer and plain scoring are from float64, and whether samples are those of plain sampling."""
    heads = KEY_HEADS[name]
    shape = {"num_key_value_heads": heads, "vocab_size": VOCABULARY} | ({} if bench.toy else SMALL)
    lm = random_llama(bench, name, dtype, **shape)
    exact = exact_scores(copy.deepcopy(lm.model).to("cpu", torch.float64), prompts)
    prefixes, seeds = [prompt.prefix for prompt in prompts[:4]], list(range(len(prompts[:4])))
    # Before a backend is chosen, which may replace the model's attention.
    plain = SequentialBackend(lm)
    plain_off, plain_samples = off_by(plain.score(prompts), exact), plain.sample(prefixes, seeds, SAMPLING)
    kind = f"{SMALL['num_attention_heads']} heads, {heads} of keys, {format_name(dtype)}"
    bench.figures.row(f"scores, {kind}, one sequence at a time: {plain_off:.1e} nats off float64 at most")
    backend = backend_of(bench, lm)
    scores_row(bench, kind, backend, prompts, exact)
    if dtype == torch.float32:
        together = backend.sample(prefixes, seeds, SAMPLING)
        alone = [backend.sample([prefix], [seed], SAMPLING)[0] for prefix, seed in zip(prefixes, seeds, strict=True)]
        same = {"each prompt alone": together == alone, "plain sampling": together == plain_samples}
        told = ", ".join(f"{'as' if is_same else 'NOT as'} {of}" for of, is_same in same.items())
        bench.figures.check(f"samples, {kind}", is_right=all(same.values()), told=told)
    if other := other_scorer(bench, backend):
        # What was compiled for the one scorer is not for the other.
        with torch.compiler.set_stance("force_eager"):
            scores_row(bench, kind, backend_of(bench, lm, other), prompts, exact)


def scores_row(
    bench: Bench, kind: str, backend: LlmBackend, prompts: list[PackedPrompt], exact: list[list[float]]
) -> None:
    """How far a scorer is from float64, and whether it repeats bit for bit."""
    assert isinstance(backend.lm, CausalLm)
    scores = backend.score(prompts)
    off, repeats = off_by(scores, exact), backend.score(prompts) == scores
    fits = off <= MOST_NATS[backend.lm.model.dtype] and repeats and scorer_of(backend) != SEQUENTIAL
    told = f"{off:.1e} nats, {'repeats bit for bit' if repeats else 'does not repeat'}"
    bench.figures.check(f"scores, {kind}, {scorer_of(backend)}", is_right=fits, told=told)


def vector_rows(bench: Bench, texts: list[str]) -> None:
    """Vectors on the device in both formats, beside those of the CPU in float32."""
    config = random_bert(bench)
    expected = encode_prompted(load_encoder(config, "cpu"), texts)
    for dtype, least in LEAST_COSINE.items():
        encoder = load_inference_encoder(config.model_copy(update={"dtype": dtype}), bench.device)
        cosine = float((encode_prompted(encoder, texts) * expected).sum(1).min())
        told = f"least cosine to float32 on the CPU {cosine:.6f}"
        bench.figures.check(f"vectors, {dtype}", is_right=cosine >= least, told=told)


def off_by(scores: list[list[float]], exact: list[list[float]]) -> float:
    """The greatest distance of a score."""
    rows = zip(scores, exact, strict=True)
    return max(abs(one - other) for row, true in rows for one, other in zip(row, true, strict=True))
