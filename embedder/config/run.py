"""The settings of a run: a typed model for each section of the run file, which refuses unknown keys.

`embedder.config.load` reads them from YAML. Needs no torch, so that a run file is checked on a login node in a second.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from embedder.config.evaluate import EvaluateConfig
from embedder.config.index import BuildSettings, SearchParameters
from embedder.config.paths import AnyAbsolutePath, ModelReference, Paths, Section
from embedder.config.serve import ServeConfig
from embedder.config.submit import PipelineConfig, SubmitConfig
from embedder.config.tasks import BUILTIN_TASKS, TaskSpec
from embedder.config.train import TrainConfig
from embedder.errors import ConfigError

S = TypeVar("S", bound=Section)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""A task's name; files are named after it."""


class EncoderConfig(Section):
    """The encoder that is trained and served, before training."""

    model: ModelReference
    """Folder, place in an object store, hub name, or `package:NAME/FOLDER` for one in an installed Python package."""
    pooling: Literal["cls", "mean", "last"]
    """Which token states become the vector: the first, their mean, or the last."""
    instructions: bool = True
    """Whether the encoder already knows instructions. False for one that was not trained with any: it mines and is
    compared without; the trained encoder always gets the tasks' instructions."""
    max_tokens: int = Field(default=256, ge=8)
    """Longer texts are cut at the end."""
    batch_tokens: int = Field(default=2048, ge=64)
    """Padded tokens of a batch: on CPU 2,048 fills the caches, a GPU wants 16,384 and more."""
    int8: bool = False
    """Encode in 8 bits on a CPU: about twice as fast, and each vector moves a little (a mean cosine of at least 0.99 is
    checked at load), by what stands beside it too. Training is not touched by it."""


class LlmConfig(Section):
    """The LLM whose feedback teaches the encoder."""

    model: ModelReference
    """As `encoder.model`; a folder with a single GGUF file is converted once and kept in `paths.cache`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_prefix_tokens: int = Field(default=1024, ge=16)
    """A longer prefix loses tokens from the candidate's end, never from the query or the output."""
    batch_tokens: int = Field(default=2048, ge=64)
    """Tokens of a scoring batch; halved when memory runs out."""
    device_map: Literal["single", "auto"] = "single"
    """auto spreads the layers over all GPUs of an actor, for an LLM larger than one of them."""


class Source(Section):
    """One dataset to prepare."""

    task: str
    dataset: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the dataset within the run."""
    path: AnyAbsolutePath
    """layout, beir: a folder; reference: one JSON Lines file of training rows, or a folder (train, test, corpus)."""
    format: Literal["layout", "reference", "beir"] = "layout"
    corpus: AnyAbsolutePath | None = None
    """reference: the JSON Lines file whose lines `pos_index` counts; null: the folder's own, if there is one."""
    train_queries: int | None = Field(default=None, ge=0)
    """Rows of the training split that are kept (seeded choice); null keeps all."""
    test_queries: int | None = Field(default=None, ge=0)
    """The same for the test split."""
    dev_queries: int | None = Field(default=None, ge=0)
    """Rows of a dev split, cut from a fifth of the training rows (whole documents and conversations) where the source
    brings none; null: only one that the source brings."""
    passages: int | None = Field(default=None, ge=1)
    """Passages of the corpus that are kept besides those the kept queries name; null keeps all."""
    chunk_words: int = Field(default=96, ge=8)
    """lrlm: words of a chunk a long document is cut into."""
    history_chunks: int = Field(default=12, ge=2)
    """lrlm: earlier chunks among which candidates are looked for."""


class PrepareConfig(Section):
    """Source files to checked rows."""

    sources: list[Source] = Field(min_length=1)
    max_rejected_share: float = Field(default=0.05, ge=0, le=1)
    """The job stops when a larger share of a dataset's rows is rejected."""
    seed: int = 0


class MineConfig(Section):
    """Rows to candidate groups."""

    group_size: int = Field(default=8, ge=2)
    """Candidates of a query, known positives included."""
    window: tuple[int, int] = (2, 50)
    """Ranks (first, last), counted from 0, of the rankings from which negatives are drawn."""
    lexical_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the drawn candidates that comes from the lexical ranking, the rest from the dense one."""
    duplicate_overlap: float = Field(default=0.9, gt=0, le=1)
    """A passage whose words overlap a positive's by this share (Jaccard) is left out as a duplicate of it."""
    num_actors: int = Field(default=2, ge=1)
    gpus_per_actor: float = Field(default=0, ge=0)
    seed: int = 0

    @model_validator(mode="after")
    def window_is_ordered(self) -> MineConfig:
        """Refuse an empty window."""
        first, last = self.window
        if not 0 <= first < last:
            raise ValueError(f"window is {list(self.window)}; it needs 0 <= first < last")
        return self


class LabelConfig(Section):
    """Candidate groups to rewards."""

    teacher: Literal["llm", "reranker", "imported"] = "llm"
    """Who rewards: the LLM; a cross-encoder trained on the LLM's rewards; or rewards made elsewhere (`imported`)."""
    imported: AnyAbsolutePath | None = None
    """JSON Lines of the reference with `teacher_scores`; needed by, and only by, the teacher `imported`."""
    export: AnyAbsolutePath | None = None
    """Where the labelled groups are also written as JSON Lines of the reference; null: nowhere."""
    recompute: bool = False
    """Recompute the rewards from the stored log-likelihoods, after a task's `reward` was changed; needs no LLM."""
    num_samples: int = Field(default=10, ge=1)
    """Outputs sampled per query without a candidate, among which the desired output is ranked (N)."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the sampling."""
    top_k: int = Field(default=50, ge=1)
    """Sampling draws from the k likeliest tokens."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Of these, from the likeliest whose probabilities sum to p."""
    unit_groups: int = Field(default=8, ge=1)
    """Groups that are sampled and scored together. For one value of it the labels are the same bit for bit, whatever
    the blocks, the actors and their order."""
    block_rows: int = Field(default=8, ge=1)
    """Groups that are committed together, rounded up to whole units; a kill costs at most this many an actor."""
    max_error_share: float = Field(default=0.05, ge=0, le=1)
    """The job ends with an error when a larger share of the groups could not be scored."""
    dry_run_groups: int = Field(default=2, ge=0)
    """Groups that `--dry-run` labels on this machine to estimate the time; 0 estimates from sizes alone."""
    num_actors: int = Field(default=2, ge=1)
    """Greatest number of actors."""
    min_actors: int | None = Field(default=None, ge=1)
    """The pool grows from this number as long as work waits; null: `num_actors` from the start."""
    cpus_per_actor: float = Field(default=1, gt=0)
    """Of an actor without a GPU; also its threads."""
    gpus_per_actor: float = Field(default=0, ge=0)
    """0.5 puts two actors on a GPU; 2 and more with `llm.device_map: auto` spreads the LLM over them."""
    seed: int = 0

    @model_validator(mode="after")
    def parts_fit(self) -> LabelConfig:
        """Refuse an import without a file, and the reverse, and a pool whose least size exceeds its greatest."""
        if (self.teacher == "imported") != (self.imported is not None):
            raise ValueError(f"teacher is {self.teacher!r} and imported is {self.imported}; give both or neither")
        if self.min_actors is not None and self.min_actors > self.num_actors:
            raise ValueError(f"min_actors {self.min_actors} exceeds num_actors {self.num_actors}")
        return self


class RerankerConfig(Section):
    """The cross-encoder that learns the LLM's rewards and labels in its place (`label.teacher: reranker`)."""

    model: ModelReference
    """Encoder it starts from, as `encoder.model`."""
    llm_groups: int | None = Field(default=None, ge=1)
    """Groups per dataset that the LLM labels for it (seeded choice); null: all."""
    steps: int = Field(default=500, ge=1)
    batch_size: int = Field(default=16, ge=1)
    """Groups of a global batch, over all workers; all of one task."""
    learning_rate: float = Field(default=2e-5, gt=0)
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    max_tokens: int = Field(default=256, ge=8)
    """Of a query with its candidate; the candidate is cut."""
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    """Groups kept out of its training, on which its agreement with the LLM is reported."""
    num_workers: int = Field(default=1, ge=1)
    gpus_per_worker: float = Field(default=0, ge=0)
    save_every: int = Field(default=100, ge=1)
    """Steps between two checkpoints."""
    seed: int = 0

    @model_validator(mode="after")
    def batch_divides(self) -> RerankerConfig:
        """Refuse a batch that the workers cannot share evenly."""
        if self.batch_size % self.num_workers:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of num_workers {self.num_workers}")
        return self


class IndexConfig(Section):
    """Corpus to a version of the index."""

    model: ModelReference | None = None
    """Encoder of the bundle; null: the trained one of this run."""
    factory: str = "auto"
    """FAISS factory string (the metric is the inner product of unit vectors), or auto: exact up to 50,000 passages of a
    task in a shard, then IVF with 4-bit product quantisation and exact refinement."""
    search: SearchParameters = SearchParameters()
    """Defaults of the searches; null: by the kind of index. A request may ask for others."""
    lexical: bool = True
    """Whether the index can be searched by words too, and by words and vectors together."""
    num_shards: int = Field(default=1, ge=1)
    """Every shard holds its slice of each task's passages, and is served by a deployment of its own."""
    alias: str = Field(default="live", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
    """Name under which the version that the job builds is served from then on."""

    @property
    def build_settings(self) -> BuildSettings:
        """What a collection keeps of these."""
        return BuildSettings(factory=self.factory, lexical=self.lexical, search=self.search)


class RunConfig(Section):
    """A whole run file."""

    paths: Paths
    encoder: EncoderConfig
    llm: LlmConfig | None = None
    tasks: dict[str, TaskSpec] = BUILTIN_TASKS
    prepare: PrepareConfig | None = None
    mine: MineConfig = MineConfig()
    label: LabelConfig = LabelConfig()
    reranker: RerankerConfig | None = None
    train: TrainConfig | None = None
    index: IndexConfig = IndexConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    serve: ServeConfig = ServeConfig()
    pipeline: PipelineConfig = PipelineConfig()
    submit: SubmitConfig = SubmitConfig()

    @property
    def needed_llm(self) -> LlmConfig:
        """The section `llm`.

        Raises:
            ConfigError: there is none, as for the next ones.
        """
        return _needed(self.llm, "llm", "llm.model, the LLM's folder")

    @property
    def needed_prepare(self) -> PrepareConfig:
        """The section `prepare`."""
        return _needed(self.prepare, "prepare", "prepare.sources")

    @property
    def needed_train(self) -> TrainConfig:
        """The section `train`."""
        return _needed(self.train, "train", "train.steps")

    @property
    def needed_reranker(self) -> RerankerConfig:
        """The section `reranker`."""
        return _needed(self.reranker, "reranker", "reranker.model")

    @property
    def base_tasks(self) -> dict[str, TaskSpec]:
        """The tasks as the base encoder is given them, which may know no instructions."""
        if self.encoder.instructions:
            return self.tasks
        return {name: spec.without_instructions() for name, spec in self.tasks.items()}

    @model_validator(mode="before")
    @classmethod
    def complete_tasks(cls, raw: object) -> object:
        """Lay the run file's `tasks` over the built-in ones, field by field."""
        if not isinstance(raw, dict) or not isinstance(raw.get("tasks", {}), dict):
            return raw
        tasks: dict[str, Any] = {name: spec.model_dump() for name, spec in BUILTIN_TASKS.items()}
        for name, fields in raw.get("tasks", {}).items():
            if not isinstance(fields, dict):
                raise ValueError(f"tasks.{name} is {fields!r}; give a mapping of the task's fields")
            tasks[name] = {**tasks.get(name, {}), **fields}
        return {**raw, "tasks": tasks}

    @model_validator(mode="after")
    def reranker_is_described(self) -> RunConfig:
        """Refuse a teacher without its section."""
        if self.label.teacher == "reranker" and self.reranker is None:
            raise ValueError("label.teacher is 'reranker', but there is no `reranker` section; name its model there")
        return self

    @model_validator(mode="after")
    def losses_fit(self) -> RunConfig:
        """Refuse a loss whose rewards are missing, and a temperature that it does not know."""
        for name, spec in self.tasks.items():
            if spec.reward == "none" and spec.loss != "contrastive":
                raise ValueError(f"tasks.{name}.loss is {spec.loss!r}, which needs rewards, but reward is 'none'")
            if spec.loss == "reference" and spec.reward_temperature != 1:
                raise ValueError(
                    f"tasks.{name}.loss is 'reference', which knows no temperature, but reward_temperature is "
                    f"{spec.reward_temperature}; set it to 1, or take the loss 'graded'"
                )
        return self

    @model_validator(mode="after")
    def parts_fit(self) -> RunConfig:
        """Refuse settings that are right one by one and wrong together."""
        for name, spec in self.tasks.items():
            if not NAME.fullmatch(name):
                raise ValueError(f"tasks: {name!r} is no task name; use letters, digits, - and _")
            if spec.reward != "none" and spec.template is None:
                raise ValueError(f"tasks.{name}.reward is {spec.reward!r} but it has no template")
        seen: set[str] = set()
        for source in self.prepare.sources if self.prepare else []:
            if source.task not in self.tasks:
                raise ValueError(f"source {source.dataset!r} has task {source.task!r}; known are {sorted(self.tasks)}")
            if source.dataset in seen:
                raise ValueError(f"two sources are called {source.dataset!r}; dataset names must differ")
            seen.add(source.dataset)
        for name in self.train.task_weights if self.train else {}:
            if name not in self.tasks:
                raise ValueError(f"train.task_weights names {name!r}; known tasks are {sorted(self.tasks)}")
        return self


def _needed(section: S | None, name: str, key: str) -> S:
    """A section that a job cannot do without."""
    if section is None:
        raise ConfigError(f"the run file has no `{name}` section; give it {key}")
    return section
