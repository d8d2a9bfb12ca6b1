"""The one loader of models: encoders, cross-encoders and LLMs come from transformers through here.

transformers fills missing weights with random numbers and only warns, and it and its libraries raise errors of many
kinds. Here what does not fit is refused with one line, before any weight is read. Code of a model folder never runs.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from embedder.errors import EmbedderError, ModelError
from embedder.models.locate import CONFIG, gguf_file, quantisation
from embedder.models.memory import is_memory_error
from embedder.models.weight_files import StoredTensor, read_object, stored_shapes

TWO_HALVES = {"t5", "mt5", "umt5"}
"""Encoder-decoder models, of which the encoder is taken."""
WRAPPERS = ("_orig_mod.", "module.", "_forward_module.")
"""What torch.compile, DataParallel and DeepSpeed put before the names of weights."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names in safetensors headers; those that are not here are loaded by quantised models alone."""
FULL_PRECISION = {"F64", "F32", "F16", "BF16"}
"""The types in which weights are numbers as they are."""
PADDED_POSITIONS = {"roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet"}
"""Models that count positions from the padding token's id on, and so take fewer tokens than they have positions."""
TEXT_TOKENS = {f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")} | {
    "additional_special_tokens"
}
"""Special tokens that a text model may use; all others stand for what is no text."""
NUMBER = re.compile(r"\.\d+\.")
"""The number of a layer in the name of a weight."""
PROBES = ("a", "The fox", "é 日本 \U0001f600\n")


@dataclass(frozen=True)
class ModelKind:
    """What is to be loaded, and which weights may be missing from the folder."""

    name: str
    """As a user knows it."""
    auto: type
    """The class of transformers that chooses the architecture."""
    optional: Callable[[str, PreTrainedModel], bool] = lambda name, model: False
    """True for a weight that is made anew, or never used."""


def _in_pooler(name: str, model: PreTrainedModel) -> bool:
    # The vector is pooled from the token states, so what a BERT adds behind them is never used.
    return "pooler" in name.split(".")


def _in_head(name: str, model: PreTrainedModel) -> bool:
    # A cross-encoder that is to be trained starts from an encoder, which has no head.
    return _in_pooler(name, model) or not name.startswith(f"{model.base_model_prefix}.")


ENCODER = ModelKind("encoder", AutoModel, _in_pooler)
CROSS_ENCODER = ModelKind("cross-encoder", AutoModelForSequenceClassification, _in_head)
LLM = ModelKind("causal language model", AutoModelForCausalLM)


@contextmanager
def one_model_error(folder: Path) -> Iterator[None]:
    """Turn whatever a library raises about a model folder into one line.

    Raises:
        ModelError: anything was raised.
    """
    try:
        yield
    except EmbedderError:
        raise
    # Exception itself, because tokenizers raises no other kind, and what torch, safetensors and transformers make of
    # a damaged file is a KeyError, an AttributeError, a ZeroDivisionError, a MemoryError and more.
    except Exception as error:
        if is_memory_error(error):
            raise ModelError(
                f"model folder {folder}: does not fit into memory ({str(error).partition(chr(10))[0]}); take a smaller "
                "model, or a device with more memory"
            ) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0][:300] if lines else "no reason given"
        if "custom code" in reason or "trust_remote_code" in str(error):
            raise ModelError(
                f"model folder {folder}: brings code of its own (auto_map), which never runs here; take a model whose "
                "architecture transformers knows"
            ) from error
        raise ModelError(
            f"model folder {folder}: cannot be loaded ({type(error).__name__}: {reason}); copy it again, or take "
            "another model"
        ) from error


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a model folder.

    Raises:
        ModelError: it cannot be read, or is of no known architecture.
    """
    with one_model_error(folder):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or of its GGUF file, which makes tokens of ordinary texts.

    Raises:
        ModelError: it cannot be read, or makes no tokens.
    """
    packed = gguf_file(folder)
    further = {"gguf_file": packed.name} if packed is not None else {}
    with one_model_error(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **further)
        if packed is None and tokenizer.is_fast:
            _drop_placeholders(tokenizer, read_object(folder / CONFIG))
        rows = tokenizer(list(PROBES), add_special_tokens=False)["input_ids"]
    if not all(rows[:2]):
        raise ModelError(
            f"model folder {folder}: its tokenizer makes no tokens of {PROBES[0 if not rows[0] else 1]!r}; copy all "
            "files of the tokenizer"
        )
    return tokenizer


def _drop_placeholders(tokenizer: PreTrainedTokenizerBase, config: Mapping[str, Any]) -> None:
    """Make text of tokens for pictures or sound beyond the embedding, as the small Gemma 3 have one.

    They share the tokenizer of the models that see, and have no embedding for `<image_soft_token>`.
    """
    text_config = config.get("text_config")
    rows = (text_config if isinstance(text_config, dict) else config).get("vocab_size")
    named = tokenizer.special_tokens_map.items()
    placeholders = {token for name, token in named if name not in TEXT_TOKENS and isinstance(token, str)}
    if not placeholders or not isinstance(rows, int):
        return
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = [
        token
        for token in described["added_tokens"]
        if token["id"] < rows or not token["special"] or token["content"] not in placeholders
    ]
    if len(kept) < len(described["added_tokens"]):
        # By the private name, because tokenizers can add a token and not take one away.
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps({**described, "added_tokens": kept}))


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, folder: Path) -> None:
    """Refuse a tokenizer that has ids for which the model has no embedding: one such id fails its whole batch.

    Raises:
        ModelError: it has.
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(rows, int):
        return
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    if beyond:
        token = min(beyond, key=lambda name: beyond[name])
        raise ModelError(
            f"model folder {folder}: its tokenizer gives {token!r} the id {beyond[token]}, but the model has "
            f"embeddings for {rows} ids; copy the tokenizer that belongs to the model, or resize_token_embeddings"
        )


def check_loadable(kind: ModelKind, folder: Path) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Compare configuration, tokenizer and the headers of the weights, and return the first two; no weight is read.

    Raises:
        ModelError: something is missing or does not fit.
    """
    if gguf_file(folder) is not None:
        raise ModelError(f"model folder {folder}: holds a GGUF file, which is for the LLM alone; take safetensors")
    config = read_config(folder)
    _check_kind(kind, config, folder)
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, config, folder)
    if kind is LLM:
        generation_ends(folder)
    check_weights(kind, config, folder)
    return config, tokenizer


def generation_ends(folder: Path) -> list[int]:
    """The tokens that end an output, by generation_config.json.

    Raises:
        ModelError: it is no JSON object, or its end tokens are no ids; transformers would pass it over, or fail on it.
    """
    path = folder / "generation_config.json"
    ends = read_object(path).get("eos_token_id") if path.is_file() else None
    listed: list[int] = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if wrong := [end for end in listed if type(end) is not int]:
        raise ModelError(f"{path}: eos_token_id holds {wrong[0]!r}, which is no token id; copy the file again")
    return listed


def _check_kind(kind: ModelKind, config: PreTrainedConfig, folder: Path) -> None:
    both_halves = config.is_encoder_decoder and not (kind is ENCODER and config.model_type in TWO_HALVES)
    # The mapping's keys are the configurations of all architectures of the kind; there is no public list.
    if both_halves or type(config) not in _auto_class(kind, config)._model_mapping:
        wanted = {
            ENCODER: "name an encoder such as a BERT or a T5, or a decoder such as a Qwen",
            CROSS_ENCODER: "name an encoder such as a BERT",
            LLM: "name a decoder-only one, such as a Llama, Qwen or Mistral",
        }[kind]
        named = f"{config.model_type} model" + (" with encoder and decoder" if both_halves else "")
        raise ModelError(f"model folder {folder}: is a {named}, which is no {kind.name} that is loaded here; {wanted}")
    if kind is not LLM and quantisation(read_object(folder / CONFIG)):
        raise ModelError(
            f"model folder {folder}: its weights are quantised, and an {kind.name} is loaded in full precision alone; "
            "take the model that it was made from"
        )


def _auto_class(kind: ModelKind, config: PreTrainedConfig) -> Any:  # noqa: ANN401
    return AutoModelForTextEncoding if kind is ENCODER and config.model_type in TWO_HALVES else kind.auto


def check_weights(kind: ModelKind, config: PreTrainedConfig, folder: Path) -> None:
    """Compare names and shapes of the stored weights with those of the architecture, as transformers would load them.

    Raises:
        ModelError: weights are missing, have other names or other shapes, or are of more layers.
    """
    # Packed weights have names and shapes of their own, which transformers unpacks as it loads them.
    if quantisation(read_object(folder / CONFIG)):
        return
    stored = stored_shapes(folder)
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    # Before a model of a billion empty layers is made, or one of none, which would load without complaint.
    if isinstance(layers, int) and not 0 < layers <= len(stored):
        raise ModelError(
            f"model folder {folder}: config.json says {layers} layers, and the weights are {len(stored)} tensors; copy "
            "the whole Hugging Face folder"
        )
    empty = {
        name: torch.empty(tensor.shape, dtype=DTYPES[tensor.dtype], device="meta")
        for name, tensor in stored.items()
        if tensor.dtype in DTYPES
    }
    with one_model_error(folder), _without_reports():
        mapped = _auto_class(kind, config)._model_mapping[type(config)]
        chosen = mapped[0] if isinstance(mapped, tuple) else mapped
        if kind is CROSS_ENCODER:
            config.num_labels = 1
        # transformers itself tells what it would load, with all its renaming, from tensors that hold nothing.
        model, told = chosen.from_pretrained(
            None,
            config=config,
            state_dict=empty,
            device_map="meta",
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
        _refuse_whole_numbers(stored, model, folder)
    _judge(kind, model, told, folder)


def _refuse_whole_numbers(stored: Mapping[str, StoredTensor], model: PreTrainedModel, folder: Path) -> None:
    """Refuse weights in a form that transformers would take for numbers, and that hold none without their scales.

    Raises:
        ModelError: a weight of the model is stored as whole numbers, or in 8 bits or fewer.
    """
    weights, prefix = dict(model.named_parameters()), f"{model.base_model_prefix}."
    for name, tensor in stored.items():
        named = {name, prefix + name, name.removeprefix(prefix)}
        if tensor.dtype not in FULL_PRECISION and named & weights.keys():
            raise ModelError(
                f"model folder {folder}: {name} is stored as {tensor.dtype}, and config.json names no quantisation by "
                "which to read it; take the model in full precision"
            )


def load_network(
    kind: ModelKind,
    folder: Path,
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype = torch.float32,
    **where: Any,  # noqa: ANN401
) -> PreTrainedModel:
    """The weights of a folder, to be evaluated, by a `device_map` or a `distributed_config` as in `from_pretrained`.

    Raises:
        ModelError: the weights cannot be read, or do not fit.
    """
    with one_model_error(folder), _without_reports():
        # Pickled weights could run anything, so they are never loaded.
        model, told = _auto_class(kind, config).from_pretrained(
            folder,
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **where,
        )
    _judge(kind, model, told, folder)
    loaded: PreTrainedModel = model.eval()
    return loaded


def usable_positions(config: PreTrainedConfig) -> int | None:
    """Tokens that the model can tell apart by their positions; None: any number, or it does not say."""
    positions = getattr(config, "max_position_embeddings", None)
    # XLNet, whose positions are relative, says -1.
    if not isinstance(positions, int) or positions <= 0:
        return None
    return positions - (config.pad_token_id or 0) - 1 if config.model_type in PADDED_POSITIONS else positions


@contextmanager
def _without_reports() -> Iterator[None]:
    """Keep transformers from printing tables of what is missing, which is refused with one line or allowed."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # in a log each of its states is a line
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _judge(kind: ModelKind, model: PreTrainedModel, told: Mapping[str, Any], folder: Path) -> None:
    missing = sorted(name for name in told["missing_keys"] if not kind.optional(name, model))
    unexpected = sorted(told["unexpected_keys"])
    if missing:
        wrapper = next((mark for mark in WRAPPERS if any(mark in name for name in unexpected)), None)
        if wrapper:
            raise ModelError(
                f"model folder {folder}: its weights are named as those of a wrapped module, such as {unexpected[0]}; "
                f"take {wrapper!r} out of the names, or save the module inside with save_pretrained"
            )
        other = f", and has {unexpected[0]} instead" if unexpected else ""
        raise ModelError(
            f"model folder {folder}: lacks weights, such as {missing[0]}{other}; as {kind.name} it needs the whole "
            "Hugging Face folder, with the config.json that belongs to it"
        )
    for name, stored, wanted in told["mismatched_keys"]:
        head = " (a cross-encoder has one label)" if kind is CROSS_ENCODER and _in_head(name, model) else ""
        raise ModelError(
            f"model folder {folder}: {name} has the shape {list(stored)}, and by config.json it is {list(wanted)}"
            f"{head}; copy the files of one model"
        )
    surplus = _of_more_layers(unexpected, model)
    if surplus:
        raise ModelError(
            f"model folder {folder}: holds {surplus}, of a layer that config.json does not count; copy the config.json "
            "that belongs to the weights"
        )


def _of_more_layers(unexpected: Iterable[str], model: PreTrainedModel) -> str | None:
    """An unexpected weight that differs from a known one in the number of its layer alone."""
    # A stored name and that of the architecture may differ by the model's prefix too, in either direction.
    prefix = f"{model.base_model_prefix}."
    known = {_pattern(name.removeprefix(prefix)) for name in model.state_dict() if NUMBER.search(name)}
    return next((name for name in unexpected if _pattern(name.removeprefix(prefix)) in known), None)


def _pattern(name: str) -> str:
    return NUMBER.sub(".#.", name)
