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

import pytest
import torch
import torch.distributed as dist

from embedder.config.run import LlmConfig
from embedder.errors import DeviceError, ModelError
from embedder.labelling.backends import choose_backend
from embedder.labelling.compute_cost import model_size
from embedder.labelling.divided_backend import DividedBackend
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.sampling import Sampling
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
    # A test of training that ran here before may have left its group of one, and a process has only one group.
    if dist.is_initialized():
        dist.destroy_process_group()
    folder = save_tiny(SHARING["mistral"], tmp_path_factory.mktemp("llm"))
    config = LlmConfig(model=str(folder), max_prefix_tokens=50, batch_tokens=64, device_map="auto")
    divided = choose_backend(load_lm(config, folder / "cache", "cpu", gpus=2), config, 10)
    yield Pair(divided, choose_backend(load_lm(config, folder / "cache", "cpu"), config, 10), folder)
    divided.lm.followers.end()


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
import os, sys
from embedder.models.tensor_parallel import Followers

def load(rank):
    return os.getpid()

def identity(lm):
    return Process()

class Process:
    def number(self):
        os.write(1, b"%d\\n" % os.getpid())  # One call, because two processes write.
    def die(self):
        if {death!r} == "follower" and os.getpid() != leader:
            os._exit(3)

leader = os.getppid() if __name__ == "__mp_main__" else os.getpid()
if __name__ == "__main__":
    followers = Followers(2, load)
    worker, _ = followers.begin(identity, 0)
    followers.call(worker, "number")
    followers.call(worker, "die")
    os._exit(0)
"""


def led(folder: Path, death: str) -> subprocess.CompletedProcess[str]:
    script = folder / "leader.py"
    script.write_text(textwrap.dedent(LEADER).format(death=death), encoding="utf-8")
    path = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    # Its output is read to its end, which comes when leader and follower have both ended.
    return subprocess.run([sys.executable, script], env=path, capture_output=True, text=True, timeout=120, check=False)


def test_followers_end_with_a_leader_that_ends_without_a_word(tmp_path):
    done = led(tmp_path, "leader")
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split())) == 2


def test_followers_one_that_dies_is_named(tmp_path):
    done = led(tmp_path, "follower")
    assert f"{DeviceError.__name__}: GPU 1 of the 2 that share the LLM failed (its process has ended)" in done.stderr


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
