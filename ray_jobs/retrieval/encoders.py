"""The encoders behind the retrievers of an evaluation."""

from __future__ import annotations

from embedder.config.evaluate import EndpointRetriever, FolderRetriever
from embedder.config.run import EncoderConfig, RunConfig
from embedder.errors import ConfigError
from embedder.evaluation.endpoint import api_key
from embedder.models.locate import locate_model
from embedder.models.st_folder import folder_encoder


def trained_encoder(config: RunConfig) -> EncoderConfig:
    """The encoder that `train` wrote."""
    return config.encoder.model_copy(update={"model": str(config.paths.model)})


def check_retrievers(config: RunConfig) -> list[str]:
    """A line for each retriever; all models are there.

    Raises:
        ModelError, ConfigError: a folder is missing or cannot be loaded, or a key is.
    """
    lines = []
    for retriever in config.evaluate.retrievers:
        where = ""
        if isinstance(retriever, FolderRetriever):
            encoder, _ = folder_encoder(retriever, config.encoder, config.tasks)
            where = f" ({locate_model(encoder.model)})"
        elif isinstance(retriever, EndpointRetriever):
            api_key(retriever)
            where = f" ({retriever.url}, {retriever.model})"
        elif retriever.kind in {"base", "trained"}:
            if retriever.kind == "trained" and not config.paths.model.is_dir():
                raise ConfigError(
                    f"{config.paths.model}: no trained encoder; run train, or leave it out of evaluate.retrievers"
                )
            encoder = config.encoder if retriever.kind == "base" else trained_encoder(config)
            where = f" ({locate_model(encoder.model)})"
        lines.append(f"retriever {retriever.name}{where}")
    return lines
