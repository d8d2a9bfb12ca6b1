"""Which stages of a run are done: a mark a stage, valid while its settings, what it reads and what it wrote stay.

`done/STAGE.json` beside the files of the round. Contents are compared, not times: a stage that is repeated and writes
the same again leaves the stages after it done. Number and kind of machines do not count as settings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone

from embedder import __version__
from embedder.config.label import RerankerConfig
from embedder.config.paths import Paths
from embedder.config.run import LlmConfig, RunConfig
from embedder.config.train import NEUTRAL
from embedder.data.hub_dataset import source_copy
from embedder.hashing import content_id
from embedder.models.fingerprint import model_fingerprint
from embedder.models.locate import locate_model
from embedder.run.written import WRITTEN, prepared_files, written_files
from embedder.storage.fetched import local_copy
from embedder.storage.folders import content_hash, content_hashes, file_names
from embedder.storage.json_file import write_json
from embedder.storage.object_store import AnyPath, reference_of

RESOURCES = NEUTRAL | {
    *("num_actors", "min_actors", "cpus_per_actor", "gpus_per_actor", "gpus_per_shard"),
    *("batch_tokens", "device_map", "scorer", "block_rows", "dry_run_groups", "rounding_groups"),
}
"""Settings that change where and how fast work is done, and of what comes out the last digits at most.

`gpus_per_actor` chooses units of 8 or 32 groups where `unit_groups` is not set. Labels of other units are rounded
otherwise, as those of another device are: finished ones stay.
"""


@dataclass(frozen=True)
class Stage:
    """All that the result of one stage depends on, and what it writes."""

    name: str
    sections: tuple[str, ...]
    """Sections of the run file."""
    reads: Callable[[RunConfig], list[AnyPath]]
    """Files and folders; model folders are named by `models`."""
    writes: Callable[[RunConfig], list[AnyPath]]
    models: Callable[[RunConfig], list[str | None]] = lambda config: []


def _model(section: LlmConfig | RerankerConfig | None) -> str | None:
    return (section.weights if isinstance(section, LlmConfig) else section.model) if section else None


def _trained(config: RunConfig) -> list[AnyPath]:
    return [config.paths.model] if config.evaluate.compares_trained else []


def _reranker(config: RunConfig) -> list[AnyPath]:
    return [config.paths.reranker] if config.label.teacher == "reranker" else []


def _control(config: RunConfig) -> list[AnyPath]:
    return [config.paths.control] if config.train and config.train.control else []


def _sources(config: RunConfig) -> list[AnyPath]:
    sources = config.prepare.sources if config.prepare else []
    beside = (path for source in sources for path in (source.corpus, source.queries) if path is not None)
    return [*(source_copy(source.path) for source in sources), *map(local_copy, beside)]


def _prepared(config: RunConfig) -> list[AnyPath]:
    """What `prepare` wrote; without a section `questions` also what that job wrote earlier, which is then too much."""
    paths = config.paths
    files = prepared_files(paths) + ([] if config.questions else written_files(paths))
    return [paths.corpus, *files]


def _tokenizers(config: RunConfig) -> list[str | None]:
    return [source.tokenizer for source in config.prepare.sources] if config.prepare else []


def _built(config: RunConfig) -> list[AnyPath]:
    """The version that was built last; which one an alias names is for those to say who run the service."""
    # Not above: with them comes FAISS, which takes longer to import than a job needs to print its help.
    from embedder.index.bundle import Manifest
    from embedder.index.catalog import Catalog

    catalog = Catalog(config.paths.indexes)
    version = catalog.built()
    return [catalog.bundle(version) / Manifest.FILE] if version else []


def _trained_on(config: RunConfig) -> list[Paths]:
    """The paths of this run, and of those that are replayed."""
    replay = config.train and config.train.replay
    runs = replay.runs if replay else []
    return [config.paths, *(config.paths.model_copy(update={"work": run.work, "round": run.round}) for run in runs)]


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "prepare",
            ("prepare", "tasks"),
            reads=_sources,
            writes=_prepared,
            models=_tokenizers,
        ),
        Stage(
            "questions",
            ("questions", "llm", "encoder", "tasks", "words"),
            reads=_prepared,
            writes=lambda config: [config.paths.questions / WRITTEN, *written_files(config.paths)],
            models=lambda config: [_model(config.llm), config.encoder.model],
        ),
        Stage(
            "mine",
            ("mine", "words", "encoder", "tasks"),
            reads=lambda config: [config.paths.corpus, config.paths.queries],
            writes=lambda config: [config.paths.candidates],
            models=lambda config: [config.encoder.model],
        ),
        Stage(
            "label",
            ("label", "llm", "reranker", "tasks"),
            reads=lambda config: [config.paths.queries, config.paths.candidates],
            writes=lambda config: [config.paths.labelled, *([config.label.export] if config.label.export else [])],
            models=lambda config: [_model(config.llm), _model(config.reranker)],
        ),
        Stage(
            "train",
            ("train", "encoder", "tasks"),
            reads=lambda config: [
                path for paths in _trained_on(config) for path in (paths.queries, paths.candidates, paths.labelled)
            ],
            writes=lambda config: [config.paths.model, *_control(config)],
            models=lambda config: [config.encoder.model],
        ),
        Stage(
            "index",
            ("index", "words", "encoder", "tasks"),
            reads=lambda config: [config.paths.corpus, *_reranker(config)],
            writes=_built,
            models=lambda config: [config.index.model or reference_of(config.paths.model)],
        ),
        Stage(
            "evaluate",
            ("evaluate", "words", "encoder", "llm", "label", "tasks"),
            reads=lambda config: [config.paths.corpus, config.paths.queries],
            writes=lambda config: [config.paths.work / "evaluation", config.paths.summary],
            models=lambda config: [
                *(config.encoder.model, _model(config.llm)),
                *map(reference_of, [*_trained(config), *_control(config)]),
            ],
        ),
    )
}


@dataclass
class Contents:
    """Hashes of files, folders and models; each is read once until it is forgotten."""

    known: dict[str, str] = field(default_factory=dict)

    def of(self, path: AnyPath) -> str:
        """Hash of a file or object, or of the names and contents below a folder; empty where there is nothing.

        Raises:
            DataError: the object store does not answer, or refuses.
        """
        if str(path) not in self.known:
            self.known[str(path)] = _content(path)
        return self.known[str(path)]

    def of_model(self, reference: str | None) -> str:
        """Identity of a model; empty for none."""
        if reference is None:
            return ""
        key = f"model {reference}"
        if key not in self.known:
            self.known[key] = model_fingerprint(locate_model(reference))
        return self.known[key]

    def forget(self) -> None:
        """Drop all cached hashes: a stage has written something."""
        self.known.clear()


def _content(path: AnyPath) -> str:
    if path.is_file():
        return content_hash(path)
    names = file_names(path)
    # By name and content and not by time: a stage that is repeated and writes the same leaves the later ones done.
    hashes = content_hashes([path / name for name in names])
    return content_id([list(pair) for pair in zip(names, hashes, strict=True)]) if names else ""


def effective(value: object) -> object:
    """Settings without those of RESOURCES, at any depth."""
    if isinstance(value, dict):
        return {key: effective(item) for key, item in value.items() if key not in RESOURCES}
    return [effective(item) for item in value] if isinstance(value, list) else value


def fingerprint(stage: Stage, config: RunConfig, contents: Contents) -> str:
    """Identity of what a stage would do now."""
    dumped = config.model_dump(mode="json")
    settings = {name: effective(dumped[name]) for name in stage.sections}
    read = [contents.of(path) for path in stage.reads(config)]
    models = [contents.of_model(reference) for reference in stage.models(config)]
    return content_id(__version__, stage.name, settings, read, models)


def mark_path(stage: Stage, config: RunConfig) -> AnyPath:
    return config.paths.done / f"{stage.name}.json"


def is_done(stage: Stage, config: RunConfig, contents: Contents) -> bool:
    """Whether the stage has run with these settings on these inputs, and what it wrote is still as it left it."""
    path = mark_path(stage, config)
    if not path.is_file():
        return False
    mark = json.loads(path.read_text(encoding="utf-8"))
    # The output too, because a folder may have been removed or changed by hand since the stage has ended.
    written = [contents.of(output) for output in stage.writes(config)]
    return (
        bool(written)
        and all(written)
        and [mark["fingerprint"], mark["written"]] == [fingerprint(stage, config, contents), written]
    )


def mark_done(stage: Stage, config: RunConfig, contents: Contents) -> None:
    """Note that the stage has just been done."""
    mark = {
        "stage": stage.name,
        "version": __version__,
        "fingerprint": fingerprint(stage, config, contents),
        "written": [contents.of(output) for output in stage.writes(config)],
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_json(mark, mark_path(stage, config))
