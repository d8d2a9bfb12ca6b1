"""Which results may stand together: short hashes of everything that changes a result. Needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from embedder.config.label import LabelConfig
from embedder.config.run import EncoderConfig, LlmConfig
from embedder.config.tasks import OWN_REWARDS, PROMPT_FORMAT, TaskSpec
from embedder.hashing import content_id, file_sha256
from embedder.models.locate import gguf_file, locate_llm, locate_model
from embedder.models.weight_files import read_header, read_json, weight_files

INERT_FOLDERS = {"onnx", "openvino", "coreml", "runs", "original"}
INERT_NAMES = {"lineage.json", "trainer_state.json", "all_results.json", "train_results.json", "eval_results.json"}
INERT_STEMS = {"readme", "license", "notice", "usage_policy", "use_policy"}
INERT_SUFFIXES = {
    *(".md", ".rst", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".pdf", ".csv", ".log", ".lock"),
    # Pickles, code and the weights of other libraries are never loaded.
    *(".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".ot", ".npz", ".onnx", ".tflite"),
    *(".py", ".pyc", ".ipynb", ".sh", ".cpp", ".cu"),
}
"""Files of a model folder that change no result. All others count, also those of names that nobody knows yet."""
WEIGHTS = {".safetensors", ".gguf"}
WRITTEN_BY = {"_name_or_path", "name_or_path", "transformers_version", "is_local", "_commit_hash"}
"""Keys of JSON files that say who wrote them and from where, and not what they hold."""
ONCE_ABOVE = 2**20
"""Bytes: the hash of a larger file is kept while its size and times stay."""


def encoder_fingerprint(config: EncoderConfig) -> str:
    """Identity of an encoder: weights, config, tokenizer, pooling and truncation. Its `dtype` stands beside it."""
    return located_fingerprint(locate_model(config.model), config)


def located_fingerprint(model: Path, config: EncoderConfig) -> str:
    """Identity of the encoder that loading this folder by a config would give."""
    return model_fingerprint(model, {"pooling": config.pooling, "max_tokens": config.max_tokens})


def vectors_name(config: EncoderConfig) -> str:
    """The folder of an encoder's vectors; those in another number format lie apart, as they are not the same."""
    fingerprint = encoder_fingerprint(config)
    return fingerprint if config.dtype == "float32" else f"{fingerprint}-{config.dtype}"


def label_fingerprint(llm: LlmConfig | None, label: LabelConfig, tasks: dict[str, TaskSpec]) -> str:
    """Identity of log-likelihoods: the LLM, the prompts and the sampling; those of two identities must not be mixed.

    The kind of reward counts only as far as other outputs are scored for it; rewards are made from the stored
    log-likelihoods.
    """
    model = llm and llm_fingerprint(llm)
    sampling: list[object] = [label.num_samples, label.temperature, label.top_k, label.top_p, label.seed]
    # Only where they are set, so that labels made before there were such settings stay what they are.
    if label.corpus_outputs or label.sample_length != "setting":
        sampling += [label.corpus_outputs, label.sample_length]
    prompts = {
        name: [spec.template and spec.template.model_dump(), spec.shots, spec.max_output_tokens]
        for name, spec in tasks.items()
    }
    # Other outputs are scored for these than for rewards from answers. Left out where there are none, as above.
    own = [
        [name, spec.reward, spec.reward_template and spec.reward_template.model_dump()]
        for name, spec in tasks.items()
        if spec.reward in OWN_REWARDS
    ]
    return content_id(model, sampling, PROMPT_FORMAT, prompts, *([own] if own else []))[:16]


def llm_fingerprint(llm: LlmConfig) -> str:
    """Identity of an LLM with its number format and the length of its prompts; `batch_tokens` changes rounding alone.

    Of one that a server runs its name there and its tokenizer count. What the server itself says is kept beside the
    labels (ray_jobs.labelling.provenance), since it is not known without asking.
    """
    if llm.endpoint is None:
        limits = {"dtype": llm.dtype, "max_prefix_tokens": llm.max_prefix_tokens}
        return model_fingerprint(locate_model(llm.model), limits)
    folder = locate_llm(llm)
    packed = gguf_file(folder)
    names = [packed] if packed is not None else list(_counted(folder))
    files = [[path.relative_to(folder).as_posix(), _content(path)] for path in names]
    return content_id("endpoint", llm.endpoint.model, llm.max_prefix_tokens, files)[:16]


def model_fingerprint(folder: Path, settings: Mapping[str, object] | None = None) -> str:
    """Hash of what a model folder holds and of the settings that change its output; not of where the folder is.

    Weights count by tensor, so that the same ones in other shards are the same model.
    """
    packed = gguf_file(folder)
    loaded = [packed] if packed is not None else weight_files(folder)
    files = [[path.relative_to(folder).as_posix(), _content(path)] for path in _counted(folder)]
    weights = sorted(tensor for path in loaded for tensor in _weights(path))
    # As a list and not as joined text, so that no two lists give the same bytes.
    return content_id(sorted((settings or {}).items()), files, weights)[:16]


def is_inert(name: Path) -> bool:
    """True for a file, named from its model folder, that changes no result of the model."""
    # A name that begins with a dot is a cache, an unfinished file, or Git's.
    if any(part.startswith(".") for part in name.parts) or INERT_FOLDERS.intersection(name.parts[:-1]):
        return True
    lower = name.name.lower()
    return (
        name.suffix.lower() in INERT_SUFFIXES
        or lower in INERT_NAMES
        or (lower.partition(".")[0] in INERT_STEMS and name.suffix.lower() in {"", ".txt"})
        or lower.endswith(".safetensors.index.json")
    )


def _counted(folder: Path) -> Iterator[Path]:
    """All files that count but the weights."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        # Weights beside the folder's own are loaded by nobody; in a folder below they belong to a further layer.
        if path.is_file() and not is_inert(name) and not (path.suffix in WEIGHTS and path.parent == folder):
            yield path


def _content(path: Path) -> str:
    # Not in vocabularies, where each of these keys may be a word.
    if path.name.endswith("config.json"):
        value = read_json(path)
        if isinstance(value, dict):
            return content_id({key: value[key] for key in sorted(value) if key not in WRITTEN_BY})
    return _kept(path, "whole")[0][1]


def _weights(path: Path) -> tuple[tuple[str, str], ...]:
    return _kept(path, "whole" if path.suffix == ".gguf" else "tensors")


def _kept(path: Path, how: str) -> tuple[tuple[str, str], ...]:
    """The named hashes of a file, kept for large ones, which `train` and others would read twice."""
    stat = path.stat()
    if stat.st_size <= ONCE_ABOVE:
        return _hashes(path, how)
    # The time of change of the inode too, because a copy may keep the time of the content.
    return _kept_hashes(path, how, (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))


@lru_cache(maxsize=4096)
def _kept_hashes(path: Path, how: str, state: tuple[int, ...]) -> tuple[tuple[str, str], ...]:
    return _hashes(path, how)


def _hashes(path: Path, how: str) -> tuple[tuple[str, str], ...]:
    return (("", file_sha256(path)),) if how == "whole" else tuple(_tensor_hashes(path))


def _tensor_hashes(path: Path) -> Iterator[tuple[str, str]]:
    """Name and hash of each tensor of a safetensors file; the hash is of its type, shape and bytes."""
    tensors = read_header(path)
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
            digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
            file.seek(start + tensor.begin)
            left = tensor.end - tensor.begin
            while left:
                piece = file.read(min(left, 2**20))
                digest.update(piece)
                left -= len(piece)
            yield name, digest.hexdigest()
