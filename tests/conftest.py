"""Shared fixtures: a tiny random encoder and two tiny random LLMs, made in a second from texts below."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before anything imports Ray, transformers, torch or FAISS, which read these once: no hub, a Ray token of the session's
# own, and one thread a process. Models here are so small that a second thread costs more than it brings, and far more
# on a machine with other work. Where a test asks for several, they sleep while they wait: threads of OpenMP that spin
# take the processor from those they wait for, and a training step of a small model was 20 times as long.
os.environ["HF_HUB_OFFLINE"] = "1"
NODE_CACHE = tempfile.TemporaryDirectory(prefix="node-cache-")
os.environ["LLM_EMBEDDER_CACHE"] = NODE_CACHE.name
RAY_TOKEN = Path(tempfile.mkdtemp(prefix="ray-token-")) / "token"
RAY_TOKEN.write_text("0123456789abcdef" * 4, encoding="utf-8")
RAY_TOKEN.chmod(0o600)
os.environ |= {"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "taken-by-the-tests-own-store"}
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_THREAD_TIMEOUT": "1"}
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(RAY_TOKEN)}

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from embedder.config.run import EncoderConfig, LlmConfig
from embedder.storage.connect import open_store
from embedder.storage.object_store import ObjectPath
from embedder.storage.store import Store
from tests.azurite import azurite_command, serve_azure
from tests.object_store import ObjectStore, serve_objects

OWN_RAY = {"attacks", "autoscale", "label_kills", "node_faults", "open_ray", "overload", "own_documents"}
"""Files of tests/cluster whose tests start a Ray of their own, and no test the session's cluster."""


class FolderScheduling(LoadScopeScheduling):
    """Gives one process all tests of the session's cluster, so that there is one, and the others a file at a time."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        needs_cluster = file.startswith("tests/cluster/") and Path(file).stem.removeprefix("test_") not in OWN_RAY
        return "tests/cluster" if needs_cluster else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FolderScheduling:
    """Called by pytest-xdist where tests run in several processes (`-n 2`)."""
    return FolderScheduling(config, log)


LOUD = 0.2
"""Standard deviation of the LLMs' random weights: with the usual 0.02 a wrong position or mask would hardly be seen."""

DATA = Path(__file__).parents[2] / "shared" / "data"
"""Real data; where it is absent the tests that read it are skipped."""

WORDS = [
    "The quick brown fox jumps over the lazy dog and runs into the dark forest.",
    "Knowledge: Paris is the capital of France, a country in Europe. Q: which city is the capital? A: Paris",
    "A list holds items in order; a dict maps keys to values; a set holds each item once.",
    "Speaker 1: where is the station? Speaker 2: behind the old bridge, next to the market.",
]


def word_tokenizer(special: list[str]) -> Tokenizer:
    """A byte-level tokenizer of 600 tokens, the special ones first."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(WORDS, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of 2 layers and 32 dimensions as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("tiny-encoder")
    tokenizer = word_tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=600,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tiny_encoder_folder: Path) -> EncoderConfig:
    """How to load the tiny encoder."""
    return EncoderConfig(model=str(tiny_encoder_folder), pooling="mean", max_tokens=64, batch_tokens=256)


def save_lm(folder: Path, model: torch.nn.Module) -> Path:
    """Write a model that knows 600 tokens, with a tokenizer, as a Hugging Face folder."""
    tokenizer = word_tokenizer(["[PAD]", "[UNK]", "[END]"])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[END]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=600,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=LOUD,
    )
    return save_lm(tmp_path_factory.mktemp("tiny-llama"), LlamaForCausalLM(config))


@pytest.fixture(scope="session")
def tiny_gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of 2 layers."""
    torch.manual_seed(2)
    config = GPT2Config(vocab_size=600, n_embd=32, n_layer=2, n_head=4, n_positions=512, initializer_range=LOUD)
    return save_lm(tmp_path_factory.mktemp("tiny-gpt2"), GPT2LMHeadModel(config))


@pytest.fixture(scope="session")
def tiny_llm(tiny_llama_folder: Path) -> LlmConfig:
    """How to load the tiny Llama."""
    return LlmConfig(model=str(tiny_llama_folder), max_prefix_tokens=200, batch_tokens=1024)


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A server that speaks S3, on loopback."""
    with serve_objects(tmp_path_factory.mktemp("object-store") / "server.log") as store:
        yield store


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectPath]:
    """A server that speaks Azure's protocol, on loopback."""
    command = azurite_command()
    if command is None:
        pytest.skip("Azurite is not here: npm install --prefix .cache/azurite azurite@3.37.0")
    with serve_azure(command, tmp_path_factory.mktemp("azure") / "server.log") as place:
        yield place


@pytest.fixture(params=["folder", "s3", "azure"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "folder":
        return open_store(tmp_path / "store")
    if request.param == "s3":
        return open_store(request.getfixturevalue("object_store").path(f"any/{tmp_path.name}"))
    return open_store(request.getfixturevalue("azure") / tmp_path.name)
