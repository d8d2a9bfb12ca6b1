"""An LLM that two processes share is the same LLM. On a CPU, where gloo stands in for NCCL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import deepspeed
import pytest
import torch
import torch.distributed as dist

from embedder.config.run import FLEX, LlmConfig
from embedder.errors import DeviceError, ModelError
from embedder.labelling.backends import choose_backend
from embedder.labelling.compute_cost import model_size
from embedder.labelling.divided_backend import DividedBackend
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.sampling import Sampling
from embedder.labelling.tree_attention import ATTENTION
from embedder.labelling.tree_backend import TreeBackend
from embedder.models.architecture import architecture, check_division
from embedder.models.causal_lm import check_llm, load_lm
from embedder.models.loader import read_config
from tests.unit.judges import exact_model, farthest, plain_scores, random_prompts
from tests.unit.tiny_llms import SEQUENTIAL, SHARING, save_tiny

SAMPLING = Sampling(num_samples=3, max_tokens=6, temperature=1.0, top_k=50)


class Pair(NamedTuple):
    """A backend that two processes share, and one that has the LLM for itself."""

    divided: DividedBackend
    whole: TreeBackend
    folder: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Iterator[Pair]:
    if torch.cuda.is_available():
        pytest.skip("transformers would divide the LLM over the GPUs of this machine")
    # A test of training that ran here before may have left its group of one, and a process has only one group. Ended
    # by DeepSpeed, which else goes on using it.
    if dist.is_initialized():
        deepspeed.comm.destroy_process_group()
    folder = save_tiny(SHARING["mistral"], tmp_path_factory.mktemp("llm"))
    config = LlmConfig(model=str(folder), max_prefix_tokens=50, batch_tokens=64, device_map="auto")
    divided = choose_backend(load_lm(config, folder / "cache", "cpu", gpus=2), config, 10)
    yield Pair(divided, choose_backend(load_lm(config, folder / "cache", "cpu"), config, 10), folder)
    divided.lm.followers.end()
    dist.destroy_process_group()


def test_divided_backend_scores_equal_float64_sequences(pair):
    assert isinstance(pair.divided.worker, TreeBackend)
    exact = exact_model(pair.folder)
    for seed in range(3):
        prompts = random_prompts(6, seed)
        assert farthest(pair.divided.score(prompts), plain_scores(exact, prompts)) < 1e-4


def test_divided_backend_samples_equal_those_of_one_process(pair):
    prefixes = [prompt.prefix for prompt in random_prompts(4, seed=1)]
    seeds = [1, 2, 3, 4]
    assert pair.divided.sample(prefixes, seeds, SAMPLING) == pair.whole.sample(prefixes, seeds, SAMPLING)


def test_divided_backend_each_process_holds_half_of_every_layer(pair):
    def numbers(lm):
        return sum(weight.numel() for weight in lm.model.base_model.layers.parameters() if weight.dim() > 1)

    assert numbers(pair.divided.lm) == model_size(architecture(read_config(pair.folder))).layers / 2
    assert pair.divided.lm.gpus == 2
    assert pair.divided.lm.device_kind.startswith("2 x cpu")


def test_divided_backend_counts_the_work_of_both(pair):
    before = pair.divided.work.flops, pair.whole.work.flops
    prompts = random_prompts(6, seed=9)
    pair.divided.score(prompts)
    pair.whole.score(prompts)
    assert pair.divided.work.flops - before[0] == pair.whole.work.flops - before[1] > 0


def test_divided_backend_an_error_of_all_processes_is_the_callers_and_the_next_call_is_right(pair):
    prompts = random_prompts(6, seed=4)
    expected = pair.divided.score(prompts)
    for _ in range(2):
        with pytest.raises(ValueError, match="empty output"):
            pair.divided.score([PackedPrompt([5], [[6]], [1])])
    assert pair.divided.score(prompts) == expected


def test_divided_backend_memory_that_is_short_in_all_processes_halves_the_same_batches(pair):
    followers = pair.divided.lm.followers
    number, worker = followers.begin(ScarceMemory, pair.divided.lm)
    prompts = random_prompts(6, seed=2)
    assert farthest(followers.call(number, "score", prompts), pair.divided.score(prompts)) < 1e-5
    assert worker.failed > 0


def test_tree_backend_of_each_process_works_in_one_order(pair):
    """Lanes are threads; of processes in which they took turns otherwise, sums would be of different trees."""
    followers, threads = pair.divided.lm.followers, torch.get_num_threads()
    number, _ = followers.begin(Lanes, pair.divided.lm)
    assert followers.call(number, "most") == 1
    torch.set_num_threads(threads)


class Lanes:
    """The lanes of a backend in a process with several threads."""

    def __init__(self, lm) -> None:
        torch.set_num_threads(4)
        self.lanes = TreeBackend(lm, 4096).lanes

    def most(self) -> int:
        """Of all processes."""
        most = torch.tensor(self.lanes)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)


def test_divided_backend_by_flex_with_compiled_layers_scores_equal_float64_sequences(pair):
    """The layers are traced with all that they share, and run by torch as they are: kernels are for GPUs."""
    followers = pair.divided.lm.followers
    number, worker = followers.begin(CompiledFlex, pair.divided.lm)
    prompts = random_prompts(40, seed=3)
    scores = followers.call(number, "score", prompts)
    followers.call(number, "leave")
    assert worker.graphs > 0
    assert farthest(scores, plain_scores(exact_model(pair.folder), prompts)) < 1e-4


class CompiledFlex:
    """A backend by flex attention whose layers are traced."""

    def __init__(self, lm) -> None:
        self.lm, self.graphs = lm, 0
        lm.model.set_attn_implementation(ATTENTION)
        self.backend = TreeBackend(lm, 400, FLEX)

    def score(self, prompts):
        with torch.compiler.set_stance("default", force_backend=self.count):
            return self.backend.score(prompts)

    def count(self, module, inputs):
        self.graphs += 1
        return module.forward

    def leave(self) -> None:
        """Let the layers be as they were."""
        torch._dynamo.reset()
        for layer in self.lm.model.base_model.layers:
            layer._compiled_call_impl = None


class ScarceMemory(TreeBackend):
    """A backend in which trees of more than two prompts do not fit into memory."""

    def __init__(self, lm) -> None:
        super().__init__(lm, 4096)
        self.failed = 0

    def _score_tree(self, prompts):
        if len(prompts) > 2:
            self.failed += 1
            raise torch.OutOfMemoryError("pretended")
        return super()._score_tree(prompts)


LEADER = """
import os, sys, threading
from embedder.errors import ModelError
from embedder.models import tensor_parallel
from embedder.models.tensor_parallel import Followers

tensor_parallel.PATIENCE_S = 2.0

def load(rank):
    if {death!r} == "at load, follower" and rank.number:
        raise ModelError("a weight is missing")
    if {death!r} == "at load, all":
        raise ModelError("a weight is missing")
    if {death!r} == "at load, follower" and not rank.number:
        threading.Event().wait()
    return os.getpid()

def identity(lm):
    return Process()

class Process:
    def number(self):
        os.write(1, b"%d\\n" % os.getpid())  # One call, because two processes write.
    def die(self):
        if {death!r} in ("follower", "follower awaited") and os.getpid() != leader:
            os._exit(3)
        if {death!r} == "follower awaited":
            threading.Event().wait()  # As NCCL does, which does not notice.

leader = os.getppid() if __name__ == "__mp_main__" else os.getpid()
if __name__ == "__main__":
    followers = Followers(2)
    followers.load(load)
    worker, _ = followers.begin(identity, 0)
    followers.call(worker, "number")
    followers.call(worker, "die")
    os._exit(0)
"""


def led(folder: Path, death: str) -> subprocess.CompletedProcess[str]:
    script = folder / "leader.py"
    script.write_text(textwrap.dedent(LEADER).format(death=death), encoding="utf-8")
    path = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    path["TMPDIR"] = str(folder)
    # Its output is read to its end, which comes when leader and follower have both ended.
    done = subprocess.run([sys.executable, script], env=path, capture_output=True, text=True, timeout=300, check=False)
    assert list(folder.glob("embedder-ranks-*")) == []
    return done


@pytest.mark.slow
def test_followers_end_with_a_leader_that_ends_without_a_word(tmp_path):
    done = led(tmp_path, "leader")
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split())) == 2


@pytest.mark.slow
def test_followers_one_that_dies_is_named(tmp_path):
    done = led(tmp_path, "follower")
    assert f"{DeviceError.__name__}: GPU 1 of the 2 that share the LLM failed (its process has ended)" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("death", "reason"),
    [
        ("follower awaited", "its process has ended"),
        ("at load, follower", "ModelError: a weight is missing"),
    ],
)
def test_followers_the_failure_of_one_ends_a_leader_that_waits_for_it_in_a_library(tmp_path, death, reason):
    done = led(tmp_path, death)
    assert done.returncode == 1
    assert f"GPU 1 of the 2 that share the LLM failed ({reason})" in done.stderr


@pytest.mark.slow
def test_followers_a_failure_of_all_at_load_is_that_of_the_leader_and_leaves_no_process(tmp_path):
    done = led(tmp_path, "at load, all")
    assert "ModelError: a weight is missing" in done.stderr and "GPU 1 of" not in done.stderr


@pytest.mark.parametrize(
    ("name", "gpus", "reason"),
    [
        ("mistral", 4, "4 GPUs cannot share its attention heads evenly; set gpus_per_actor to a divisor of 2"),
        ("bloom, its own attention", 2, "no plan .tp_plan. to divide a bloom over 2 GPUs"),
    ],
)
def test_check_llm_refuses_to_divide_what_cannot_be_divided(tmp_path, name, gpus, reason):
    folder = save_tiny((SHARING | SEQUENTIAL)[name], tmp_path)
    config = LlmConfig(model=str(folder), device_map="auto")
    check_llm(config, 1)
    with pytest.raises(ModelError, match=reason):
        check_llm(config, gpus)
    with pytest.raises(ModelError, match=reason):
        load_lm(config, tmp_path / "cache", "cpu", gpus=gpus)


def test_check_division_takes_the_number_of_gpus_that_share_the_heads(tmp_path):
    check_division(save_tiny(SHARING["mistral"], tmp_path), 2)


def test_check_division_refuses_packed_weights(tmp_path):
    folder = save_tiny(SHARING["mistral"], tmp_path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match="quantised by fp8, and such an LLM is for one GPU; set gpus_per_actor to 1"):
        check_division(folder, 2)
