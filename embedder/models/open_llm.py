"""The LLM of a run file, wherever it runs: loaded on a device of this process, or asked of a server."""

from __future__ import annotations

from pathlib import Path

from embedder.config.run import LlmConfig
from embedder.models.causal_lm import check_llm, load_lm, prepare_lm
from embedder.models.device import resolve_device
from embedder.models.llm import LanguageModel
from embedder.models.remote_llm import RemoteLlm


def open_llm(config: LlmConfig, cache: Path, gpus: float) -> LanguageModel:
    """The LLM for an actor with so many GPUs; a server needs none of them.

    Raises:
        ConfigError: the server's key is missing.
        ModelError, DeviceError: as `load_lm`; or the server refuses.
    """
    if config.endpoint is not None:
        return RemoteLlm.of(config, config.endpoint)
    return load_lm(config, cache, resolve_device(gpus), gpus)


def prepare_llm(config: LlmConfig, cache: Path) -> None:
    """Do once what all actors would do: a GGUF file is converted."""
    if config.endpoint is None:
        prepare_lm(config, cache)


def check_open(config: LlmConfig, gpus: float) -> None:
    """Refuse what could not be opened, as far as that is known without weights and requests that cost money.

    Raises:
        ConfigError, ModelError: as `open_llm`.
    """
    if config.endpoint is not None:
        RemoteLlm.of(config, config.endpoint).server.close()
    else:
        check_llm(config, gpus)
