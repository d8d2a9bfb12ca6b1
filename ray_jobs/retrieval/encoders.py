"""The encoders behind the retrievers of an evaluation."""

from __future__ import annotations

from embedder.config.evaluate import WITH_ENCODER, BuiltinRetriever, EndpointRetriever, FolderRetriever
from embedder.config.run import EncoderConfig, RunConfig
from embedder.config.tasks import TaskSpec
from embedder.errors import ConfigError
from embedder.models.locate import locate_model
from embedder.models.st_folder import folder_encoder
from embedder.remote.server import api_key
from embedder.storage.folders import is_whole
from embedder.storage.object_store import reference_of


def retriever_encoder(
    config: RunConfig, retriever: BuiltinRetriever | FolderRetriever
) -> tuple[EncoderConfig, dict[str, TaskSpec]]:
    """The encoder behind `base`, `trained`, `control` or a folder, and the tasks with the instructions it is given.

    Raises:
        ModelError, ConfigError: it is missing, or its pooling is not known.
    """
    if isinstance(retriever, FolderRetriever):
        return folder_encoder(retriever, config.encoder, config.tasks)
    if retriever.kind == "base":
        return config.encoder, config.base_tasks
    folder = config.paths.control if retriever.kind == "control" else config.paths.model
    if not is_whole(folder):
        raise ConfigError(
            f"{folder}: no trained encoder; run train, or leave {retriever.kind} out of evaluate.retrievers"
        )
    return config.encoder.model_copy(update={"model": reference_of(folder)}), config.tasks


def check_control(config: RunConfig) -> None:
    """Refuse to measure a control that this run does not train.

    Raises:
        ConfigError: with what to change.
    """
    is_trained = config.train is not None and config.train.control
    if not is_trained and any(retriever.kind == "control" for retriever in config.evaluate.retrievers):
        raise ConfigError(
            "evaluate.retrievers names control, but train.control is false; set it to true, or leave control out"
        )


def check_retrievers(config: RunConfig) -> list[str]:
    """A line for each retriever; all models are there.

    Raises:
        ModelError, ConfigError: a folder is missing or cannot be loaded, or a key is.
    """
    # Here, because torch comes with it: what can be refused without torch has been by now.
    from embedder.models.encoder import check_encoder

    check_control(config)
    lines = []
    for retriever in config.evaluate.retrievers:
        where = ""
        if isinstance(retriever, EndpointRetriever):
            api_key(retriever, retriever.setting)
            where = f" ({retriever.url}, {retriever.model})"
        elif retriever.kind in WITH_ENCODER:
            encoder, _ = retriever_encoder(config, retriever)
            check_encoder(encoder)
            where = f" ({locate_model(encoder.model)})"
        lines.append(f"retriever {retriever.name}{where}")
    return lines
