"""Finds model folders and refuses what cannot be loaded, by file headers and settings alone. Needs no torch."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedder.errors import ModelError
from embedder.models.weight_files import (
    count_weights,
    read_header,
    read_json,
    read_object,
    refuse_pointer,
    weight_files,
)
from embedder.storage.fetched import local_copy
from embedder.storage.object_store import ObjectPath

if TYPE_CHECKING:
    from embedder.config.run import LlmConfig

PACKAGE_SCHEME = "package:"
CONFIG = "config.json"
SMALL = 1024
"""Bytes: a Git LFS pointer is smaller."""
NOT_FETCHED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.gguf")
"""Forms of weights that are not loaded from the hub."""
QUANTISED_BY: dict[str, tuple[str, ...]] = {
    "aqlm": ("aqlm",),
    "auto-round": ("auto-round",),
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "eetq": ("kernels",),
    "fbgemm_fp8": ("fbgemm-gpu",),
    "fp8": (),
    "gptq": ("gptqmodel", "optimum"),
    "hqq": ("hqq",),
    "mxfp4": ("kernels",),
    "quanto": ("optimum",),
    "torchao": ("torchao",),
    "vptq": ("vptq",),
}
"""Ways of quantisation and the packages that each needs beside transformers."""
FOR_GPUS = {"eetq", "fbgemm_fp8", "vptq"}
"""Those of which transformers computes nothing on a CPU."""


def locate_model(reference: str) -> Path:
    """The folder with the transformer that a model reference means.

    `package:NAME/FOLDER` is a folder inside an installed Python package; `s3://x` and `gs://x` are fetched; `./x`,
    `/x`, `~/x` and existing folders are local; anything else of the form `owner/name` comes from the hub or its cache.
    Of a sentence-transformers folder it is that of its transformer.

    Raises:
        DataError: nothing is there in the object store, or it does not answer or refuses.
        ModelError: the package or folder is missing, or holds no model this project loads.
    """
    folder = transformer_folder(model_folder(reference))
    check_model_folder(folder)
    return folder


def model_folder(reference: str) -> Path:
    """The folder itself, which has not been looked into."""
    if "://" in reference:
        return local_copy(ObjectPath.parse(reference)).absolute()
    if reference.startswith(PACKAGE_SCHEME):
        return _package_folder(reference)
    folder = Path(reference).expanduser()
    if is_hub_name(reference):
        return _hub_folder(reference)
    if not folder.is_dir():
        raise ModelError(f"model folder {folder}: no such folder; correct the path in the run file")
    return folder.absolute()


TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
"""What is fetched from the hub of a model that runs elsewhere."""


def locate_llm(llm: LlmConfig) -> Path:
    """The folder of an LLM; of one that a server runs, that of its tokenizer, which needs no weights.

    Raises:
        ModelError: it is missing, or holds no tokenizer; or as `locate_model`.
    """
    if llm.endpoint is None:
        return locate_model(llm.model)
    if is_hub_name(llm.model):
        folder = _hub_folder(llm.model, TOKENIZER_FILES)
    else:
        folder = transformer_folder(model_folder(llm.model))
    if gguf_file(folder) is None and not all((folder / name).is_file() for name in ("tokenizer.json", CONFIG)):
        raise ModelError(
            f"llm.model {llm.model!r}: no tokenizer.json and {CONFIG}, and no GGUF file; name the folder or the hub "
            f"name of the tokenizer that the server's model {llm.endpoint.model!r} has"
        )
    return folder


def is_hub_name(reference: str) -> bool:
    """Tell whether a model reference means one on the hub: `owner/name`, where there is no such folder."""
    is_other = "://" in reference or reference.startswith((PACKAGE_SCHEME, ".", "/", "~"))
    return not is_other and reference.count("/") == 1 and not Path(reference).exists()


def _package_folder(reference: str) -> Path:
    name, _, inside = reference.removeprefix(PACKAGE_SCHEME).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or spec.origin is None:
        raise ModelError(
            f"model {reference!r}: no installed Python package {name!r}; install it or name a model folder"
        )
    root = Path(spec.origin).parent
    folder = (root / inside).resolve()
    if not folder.is_relative_to(root.resolve()):
        raise ModelError(f"model {reference!r}: leads out of the package")
    if not folder.is_dir():
        raise ModelError(f"model {reference!r}: no folder {inside!r} in the package; correct the path in the run file")
    return folder


@cache
def _hub_folder(name: str, files: tuple[str, ...] | None = None) -> Path:
    """The snapshot of a hub model in the cache of huggingface_hub; what is missing is downloaded.

    A process asks once, so that the folder that was checked and hashed is the one that is loaded.
    """
    # Here, because all but hub names do without it, and a run file is checked in a second.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(
            snapshot_download(name, allow_patterns=list(files) if files else None, ignore_patterns=list(NOT_FETCHED))
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        raise ModelError(
            f"model {name!r}: no such folder, and the hub is out of reach (HF_HUB_OFFLINE, or no network) with no copy "
            "in its cache; name a model folder, or download it where there is a network"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ModelError(f"model {name!r}: no such folder, and the hub does not give it: {reason}") from error


def transformer_folder(folder: Path) -> Path:
    """The folder of the transformer in a sentence-transformers folder; any other folder itself.

    Raises:
        ModelError: modules.json cannot be read, or names a folder outside of this one.
    """
    for module in read_modules(folder):
        if str(module.get("type", "")).rpartition(".")[2] == "Transformer":
            inside = (folder / str(module.get("path", ""))).resolve()
            if not inside.is_relative_to(folder.resolve()):
                raise ModelError(f"{folder / 'modules.json'}: leads out of the folder; copy the folder again")
            return inside if inside != folder.resolve() else folder
    return folder


def read_modules(folder: Path) -> list[dict[str, Any]]:
    """The modules that a sentence-transformers folder lists; none in any other folder.

    Raises:
        ModelError: the list cannot be read.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return []
    modules = read_json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelError(f"{path}: no list of modules; copy the folder again")
    return modules


def check_model_folder(folder: Path) -> None:
    """Refuse a folder without a model in safetensors or GGUF form; pickled weights are never loaded.

    Raises:
        ModelError: it is missing, lacks a file, or holds one that is cut off, a Git LFS pointer, an adapter alone, or
            quantised in a way that cannot be loaded here.
    """
    if not folder.is_dir():
        raise ModelError(f"model folder {folder}: no such folder; correct the path in the run file")
    for path in folder.iterdir():
        if path.is_file() and path.stat().st_size < SMALL:
            refuse_pointer(path)
    _refuse_adapter(folder)
    packed = gguf_file(folder)
    if packed is not None:
        with packed.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{packed}: no GGUF file; copy it again")
        return
    for path in weight_files(folder):
        read_header(path)
    for name in (CONFIG, "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise ModelError(f"model folder {folder}: no {name}; copy the whole Hugging Face folder")
        read_object(folder / name)
    check_config(folder)


def _refuse_adapter(folder: Path) -> None:
    path = folder / "adapter_config.json"
    if path.is_file():
        base = read_object(path).get("base_model_name_or_path")
        raise ModelError(
            f"model folder {folder}: holds an adapter of {base!r}, which is no model by itself; merge it into its base "
            "(peft: merge_and_unload, then save_pretrained) and name the merged folder"
        )


def check_config(folder: Path) -> None:
    """Refuse a configuration that brings code of its own, or needs a package that is not installed.

    Raises:
        ModelError: it does.
    """
    config = read_object(folder / CONFIG)
    for name in ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"):
        # A name with a slash is a repository with kernels, whose code transformers would run.
        if "/" in str(config.get(name, "")):
            raise ModelError(f"{folder / CONFIG}: {name} brings code of its own, which never runs here; take it out")
    method = quantisation(config)
    if method is None:
        return
    if method not in QUANTISED_BY:
        raise ModelError(
            f"model folder {folder}: its weights are quantised by {method!r}, which is not known here; take the model "
            "in full precision"
        )
    missing = [name for name in QUANTISED_BY[method] if importlib.util.find_spec(name.replace("-", "_")) is None]
    if missing:
        raise ModelError(
            f"model folder {folder}: its weights are quantised by {method}, which needs the package "
            f"{' and '.join(missing)}; install it, or take the model in full precision"
        )


def quantisation(config: dict[str, Any]) -> str | None:
    """How the weights are quantised, by the configuration; None: they are not."""
    settings = config.get("quantization_config")
    if settings is None:
        return None
    if not isinstance(settings, dict):
        return str(settings)
    old = "bitsandbytes" if settings.get("load_in_4bit") or settings.get("load_in_8bit") else None
    return str(settings.get("quant_method") or old)


def folder_quantisation(folder: Path) -> str | None:
    """How the weights of a model folder are quantised; None: they are not, or in a GGUF file, which is expanded."""
    return None if gguf_file(folder) is not None else quantisation(read_object(folder / CONFIG))


def gguf_file(folder: Path) -> Path | None:
    """The folder's GGUF file if that is the only form its weights have."""
    files = sorted(folder.glob("*.gguf"))
    return files[0] if len(files) == 1 and not list(folder.glob("*.safetensors")) else None


def check_runnable(folder: Path, gpus: float) -> None:
    """Refuse quantised weights that only a GPU can multiply where there is none.

    Raises:
        ModelError: the folder holds such weights, and no GPU was asked for.
    """
    method = folder_quantisation(folder)
    if method in FOR_GPUS and not gpus:
        raise ModelError(
            f"model folder {folder}: its weights are quantised by {method}, which computes on GPUs alone; set "
            "gpus_per_actor, or take the model in full precision"
        )


def loaded_bytes(folder: Path, number_bytes: int) -> int:
    """Memory that the weights take: quantised ones as in their files, others with so many bytes a number."""
    if folder_quantisation(folder):
        return sum(path.stat().st_size for path in weight_files(folder))
    return count_parameters(folder) * number_bytes


def count_parameters(folder: Path) -> int:
    """Number of stored numbers, read from the safetensors headers; a GGUF file counts its bytes at 4.5 bits a weight.

    These are the weights of a model in full precision; quantised ones are fewer numbers, and their scales are more.
    """
    packed = gguf_file(folder)
    return int(packed.stat().st_size * 8 / 4.5) if packed is not None else count_weights(folder)
