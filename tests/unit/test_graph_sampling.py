"""Sampling in buffers of fixed size, as on a GPU: the outputs of a CPU, by steps that repeat without Python code."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import AutoModelForCausalLM

from embedder.config.run import LlmConfig
from embedder.labelling import graph_sampling
from embedder.labelling.graph_sampling import (
    COLUMNS,
    ROWS,
    STEPS,
    BufferedBatch,
    GraphSampler,
    graph_sampler,
    padded_shape,
    read_one_token,
    record_cuda_graph,
    why_it_waits,
)
from embedder.labelling.sampling import Sampling, sample_outputs
from embedder.labelling.tree_attention import ATTENTION
from embedder.models.causal_lm import load_lm
from tests.unit.judges import quick
from tests.unit.tiny_llms import SHARING, save_tiny

SAMPLING = Sampling(num_samples=3, max_tokens=6, temperature=1.0, top_k=50)
ENDING = replace(SAMPLING, end_ids=frozenset(range(3, 60)), stop_ids=frozenset(range(60, 120)), max_tokens=12)
SEEDS = list(range(6))
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "is_nonzero", "lift_fresh"}
"""Operations for which the host waits for a GPU: their results decide what it does, or come from its own memory."""


class Recording(TorchDispatchMode):
    """The operations of a step, to be done again on the same tensors without the Python code around them."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, out))
        return out

    def repeat(self):
        made = {}  # by identity: what an operation had made, and what it makes now

        def now(value):
            return made.get(id(value), value)

        for function, args, kwargs, out in self.calls:
            again = function(*tree_map(now, args), **tree_map(now, kwargs))
            made |= {id(old): new for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True)}


def recorded(step):
    """Repeats a step as a CUDA graph does."""
    recording = Recording()
    with recording:
        step()
    return recording.repeat


def as_it_is(step):
    return step


def sampler_of(lm, record=as_it_is):
    return GraphSampler(lm, lambda: record)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """An LLM of one architecture; each is made once."""
    made = {}

    def make(name):
        if name not in made:
            folder = save_tiny(SHARING[name], tmp_path_factory.mktemp("llm"))
            made[name] = load_lm(LlmConfig(model=str(folder)), folder / "cache", device="cpu")
            made[name].model.set_attn_implementation(ATTENTION)
        return made[name]

    return make


@pytest.fixture(scope="module")
def lm(tiny_llama_folder, tmp_path_factory):
    loaded = load_lm(LlmConfig(model=str(tiny_llama_folder)), tmp_path_factory.mktemp("cache"), device="cpu")
    loaded.model.set_attn_implementation(ATTENTION)
    return loaded


def random_prefixes(*lengths):
    random = np.random.default_rng(0)
    return [random.integers(3, 600, length).tolist() for length in lengths]


PREFIXES = random_prefixes(1, 3, 3, 8, 20, 31)


def waits(call):
    """Tell whether an operation would make the host wait for a GPU."""
    function, args, _, _ = call
    name = function.overloadpacket.__name__
    flags = [each for each in tree_leaves(args[1:]) if getattr(each, "dtype", None) == torch.bool]
    return name in WAITING or (name in {"index", "index_put_"} and bool(flags))


@pytest.mark.parametrize("name", SHARING)
def test_graph_sampler_steps_of_every_architecture_repeat_without_python_code_and_without_waiting(load, name):
    """What a batch is (lengths, seeds, ends) stands in buffers, or a second one would be drawn as the first."""
    lm, recordings = load(name), []

    def noted(step):
        repeat = recorded(step)
        recordings.append(repeat.__self__)
        return repeat

    sampler = sampler_of(lm, noted)
    for prefixes, sampling in ((PREFIXES, SAMPLING), ([*PREFIXES[2:], [7], [8, 9]], ENDING)):
        expected = sample_outputs(lm, prefixes, SEEDS, sampling, 100_000)
        assert sample_outputs(lm, prefixes, SEEDS, sampling, 100_000, sampler) == expected
    assert len(recordings) == 2
    assert not any(waits(call) for recording in recordings for call in recording.calls)


def test_graph_sampler_experts_that_are_chosen_one_by_one_wait(load):
    """So that the test above could fail; on a GPU `why_it_waits` finds them."""
    lm = load("mixtral")
    before = lm.model.get_experts_implementation()
    recording = Recording()

    def watched(step):
        with recording:
            step()
        return step

    lm.model.set_experts_implementation("eager")
    sample_outputs(lm, PREFIXES, SEEDS, SAMPLING, 100_000, sampler_of(lm, watched))
    lm.model.set_experts_implementation(before)
    assert any(map(waits, recording.calls))


def counting(steps):
    """Records a step as it is, and how often it runs, by shape."""

    def record(step):
        shape = step.__self__.shape
        steps[shape] = 0

        def run():
            steps[shape] += 1
            step()

        return run

    return record


def test_graph_sampler_few_shapes_serve_many_batches(lm):
    steps = {}
    sampler = sampler_of(lm, counting(steps))
    for longest in range(20, 64, 4):
        for count in (5, 6):
            prefixes = random_prefixes(*range(longest - count, longest))
            sample_outputs(lm, prefixes, SEEDS[:count], replace(SAMPLING, max_tokens=longest % 7 + 2), 9999, sampler)
    assert len(steps) == 1
    addresses = [keys.data_ptr() for keys, _ in sampler._buffers]
    sample_outputs(lm, PREFIXES[:2], SEEDS[:2], SAMPLING, 9999, sampler)
    assert [keys.data_ptr() for keys, _ in sampler._buffers] == addresses
    assert len(sampler._batches) == 2


def test_graph_sampler_what_longer_prompts_need_is_made_anew(lm):
    steps = {}
    sampler = sampler_of(lm, counting(steps))
    for length in (10, 150, 10):
        prefixes = random_prefixes(length, length - 3)
        expected = sample_outputs(lm, prefixes, [1, 2], SAMPLING, 9999)
        assert sample_outputs(lm, prefixes, [1, 2], SAMPLING, 9999, sampler) == expected
    assert [shape.length for shape in sampler._batches] == [192, 64]


def test_graph_sampler_the_shape_unused_for_longest_gives_way(lm, monkeypatch):
    monkeypatch.setattr(graph_sampling, "MOST_GRAPHS", 2)
    sampler = sampler_of(lm)
    for count in (4, 3, 4, 2):
        sample_outputs(lm, PREFIXES[:count], SEEDS[:count], SAMPLING, 9999, sampler)
    assert [shape.rows for shape in sampler._batches] == [4, 2]


def test_graph_sampler_stops_one_step_after_all_samples_have_ended(lm):
    steps = {}
    long = replace(SAMPLING, max_tokens=60)
    expected = sample_outputs(lm, PREFIXES, SEEDS, long, 9999)
    ends = frozenset(tokens[4] for samples in expected for tokens in samples)
    ending = replace(long, end_ids=ends)
    outputs = sample_outputs(lm, PREFIXES, SEEDS, ending, 9999, sampler_of(lm, counting(steps)))
    assert outputs == sample_outputs(lm, PREFIXES, SEEDS, ending, 9999)
    # The first tokens need no step of their own; the one that ends the longest output is its last and one more.
    assert sum(steps.values()) == max(len(tokens) for samples in outputs for tokens in samples) + 1


@torch.inference_mode()
def test_graph_sampler_what_earlier_batches_left_in_the_buffers_does_not_matter(lm):
    sampler = sampler_of(lm, recorded)
    expected = sample_outputs(lm, PREFIXES[:5], SEEDS[:5], SAMPLING, 9999, sampler)
    for keys, values in sampler._buffers:
        keys.fill_(float("nan"))
        values.fill_(float("inf"))
    assert sample_outputs(lm, PREFIXES[:5], SEEDS[:5], SAMPLING, 9999, sampler) == expected


def test_graph_sampler_ends_the_model_has_no_logits_for_are_passed_over(lm):
    ending = replace(ENDING, end_ids=ENDING.end_ids | {600, 9999})
    expected = sample_outputs(lm, PREFIXES, SEEDS, ending, 9999)
    assert sample_outputs(lm, PREFIXES, SEEDS, ending, 9999, sampler_of(lm)) == expected


def test_graph_sampler_ends_are_those_of_the_batch(lm):
    sampler = sampler_of(lm, recorded)
    for sampling in (ENDING, replace(SAMPLING, max_tokens=ENDING.max_tokens)):
        expected = sample_outputs(lm, PREFIXES, SEEDS, sampling, 9999)
        assert sample_outputs(lm, PREFIXES, SEEDS, sampling, 9999, sampler) == expected
    assert len(sampler._batches) == 1


@pytest.mark.parametrize("max_tokens", [1, 2, 8])
def test_graph_sampler_outputs_of_one_token_and_of_a_whole_buffer(lm, max_tokens):
    sampling = replace(SAMPLING, max_tokens=max_tokens)
    expected = sample_outputs(lm, PREFIXES, SEEDS, sampling, 9999)
    assert sample_outputs(lm, PREFIXES, SEEDS, sampling, 9999, sampler_of(lm, recorded)) == expected


def test_graph_sampler_in_half_precision_the_same_prompts_give_the_same_outputs(tiny_llama_folder, tmp_path):
    half = load_lm(LlmConfig(model=str(tiny_llama_folder), dtype="bfloat16"), tmp_path, device="cpu")
    sampler = sampler_of(half)
    first = sample_outputs(half, PREFIXES, SEEDS, ENDING, 9999, sampler)
    sample_outputs(half, PREFIXES[::2], SEEDS[::2], SAMPLING, 9999, sampler)
    assert sample_outputs(half, PREFIXES, SEEDS, ENDING, 9999, sampler) == first
    assert sampler._batches[padded_shape([31] * 6, ENDING)][0].mask_R1NK.dtype == torch.bfloat16


def test_graph_sampler_short_memory_halves_the_batch_gives_the_buffers_up_and_is_remembered(lm):
    tried = []

    def small_memory(step):
        tried.append(step.__self__.shape.rows)
        if tried[-1] > 4:
            raise torch.OutOfMemoryError("pretended")
        return step

    sampler = sampler_of(lm, small_memory)
    expected = sample_outputs(lm, PREFIXES, SEEDS, SAMPLING, 9999)
    assert sample_outputs(lm, PREFIXES, SEEDS, SAMPLING, 9999, sampler) == expected
    assert tried == [8, 4]
    assert sample_outputs(lm, PREFIXES, SEEDS, SAMPLING, 9999, sampler) == expected
    assert tried == [8, 4]
    assert sampler.limit.most == 4 * (COLUMNS + 3 * STEPS)


def test_graph_sampler_an_error_leaves_no_buffers(lm):
    def fail(_):
        raise RuntimeError("pretended")

    sampler = sampler_of(lm, fail)
    with pytest.raises(RuntimeError, match="pretended"):
        sampler.decode([([5, 6], 1)], SAMPLING)
    assert (sampler._buffers, sampler._batches, sampler._room) == ([], {}, 0)


@pytest.mark.parametrize(
    ("devices", "parts", "made"),
    [(["cpu"], None, False), (["cuda:0"], None, True), (["cuda:0", "cuda:1"], None, False), (["cuda:0"], 2, False)],
)
def test_graph_sampler_is_for_an_llm_on_one_gpu(monkeypatch, devices, parts, made):
    """The second lies on two GPUs, one layer after another; the last is a part of one that is divided."""
    weights = [SimpleNamespace(device=torch.device(device)) for device in devices]
    model = SimpleNamespace(parameters=lambda: weights, tp_size=parts)
    monkeypatch.setattr(graph_sampling, "GraphSampler", lambda lm, recorder: lm)
    lm = SimpleNamespace(model=model, device=weights[0].device)
    assert graph_sampler(lm) is (lm if made else None)


@pytest.mark.parametrize("name", SHARING)
@torch.inference_mode()
def test_buffered_batch_steps_read_nothing_from_the_memory_of_the_host(name):
    """On a GPU they would wait for such a copy. Tensors without contents stand for those of a GPU here."""
    with torch.device("meta"):
        # The product of experts on a GPU is one of bfloat16.
        model = AutoModelForCausalLM.from_config(SHARING[name]).bfloat16().eval()
    model.set_attn_implementation(ATTENTION)
    lm = SimpleNamespace(model=model, device=torch.device("meta"))
    ones, vocabulary = read_one_token(lm)
    shape = padded_shape([31] * 6, SAMPLING)
    layers = [
        tuple(one.new_zeros(shape.rows, one.shape[1], shape.columns, one.shape[3]) for one in each) for each in ones
    ]
    batch, recording = BufferedBatch(lm, shape, layers, vocabulary), Recording()
    with recording:
        batch.advance()
    read = [each for _, *given, _ in recording.calls for each in tree_leaves(given) if isinstance(each, torch.Tensor)]
    assert len(read) > 100 and {each.device.type for each in read} == {"meta"}


@pytest.mark.parametrize(("free", "kept"), [(10**9, True), (1, False)])
def test_make_room_buffers_are_kept_where_as_much_stays_free(lm, monkeypatch, free, kept):
    monkeypatch.setattr(graph_sampling, "free_bytes", lambda _: free)
    sampler = sampler_of(lm)
    sample_outputs(lm, PREFIXES, SEEDS, SAMPLING, 9999, sampler)
    sampler.make_room()
    assert bool(sampler._buffers) == bool(sampler._batches) == kept


@pytest.mark.parametrize(
    ("count", "rows"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (7, 8), (8, 8), (9, 16), (17, 24), (32, 32), (128, 128)]
)
def test_padded_shape_rows_by_hand(count, rows):
    assert padded_shape([5] * count, SAMPLING).rows == rows


@quick
@given(st.lists(st.integers(1, 300), min_size=1, max_size=200), st.integers(1, 12), st.integers(1, 40))
def test_padded_shape_has_room_for_all_and_columns_that_kernels_like(lengths, samples, max_tokens):
    shape = padded_shape(lengths, replace(ENDING, num_samples=samples, max_tokens=max_tokens))
    assert len(lengths) <= shape.rows < min(2 * len(lengths), len(lengths) + ROWS)
    assert max(lengths) <= shape.length < max(lengths) + COLUMNS
    assert max_tokens <= shape.sampling.max_tokens < max_tokens + STEPS
    assert shape.columns % 8 == 0


def test_padded_shape_does_not_depend_on_the_ends():
    assert padded_shape([5], replace(ENDING, max_tokens=6)) == padded_shape([9], SAMPLING)
    assert padded_shape([5], replace(SAMPLING, top_k=7)) != padded_shape([5], SAMPLING)


class FakeCuda:
    """The parts of `torch.cuda` that a recording uses; a step that asks for a value waits."""

    def __init__(self, monkeypatch):
        self.mode, self.graphs = 0, []
        for name in ("get_sync_debug_mode", "set_sync_debug_mode", "CUDAGraph", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def get_sync_debug_mode(self):
        return self.mode

    def set_sync_debug_mode(self, mode):
        self.mode = mode

    class CUDAGraph:
        def replay(self):
            """Launch what was recorded."""

    def graph(self, graph, pool, capture_error_mode):
        self.graphs.append((graph, pool, capture_error_mode))
        return nullcontext()

    def wait(self):
        if self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation\nat a line")


def test_record_cuda_graph_is_made_after_two_runs(monkeypatch):
    cuda, runs = FakeCuda(monkeypatch), []
    repeat = record_cuda_graph("pool", lambda: runs.append(cuda.mode))
    assert runs == [0, "error", 0]
    assert [given[1:] for given in cuda.graphs] == [("pool", "thread_local")]
    assert repeat == cuda.graphs[0][0].replay


def test_record_cuda_graph_a_step_that_waits_is_run_as_it_is(monkeypatch, caplog):
    cuda = FakeCuda(monkeypatch)
    assert record_cuda_graph("pool", cuda.wait) == cuda.wait
    assert "called a synchronizing CUDA operation)" in caplog.text
    assert (cuda.graphs, cuda.mode) == ([], 0)


def test_why_it_waits_says_nothing_of_short_memory(monkeypatch):
    cuda = FakeCuda(monkeypatch)

    def fail():
        raise torch.OutOfMemoryError("pretended")

    with pytest.raises(torch.OutOfMemoryError):
        why_it_waits(fail)
    assert cuda.mode == 0
