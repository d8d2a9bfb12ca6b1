"""The whole run file with its sections, and the settings of the encoder and the LLM, which several jobs use.

`embedder.config.load` reads it from YAML. Needs no torch, so that a run file is checked on a login node in a second.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal, TypeVar

from pydantic import Field, model_validator

from embedder.config.cluster import ClusterConfig
from embedder.config.endpoints import LlmEndpoint
from embedder.config.evaluate import EvaluateConfig
from embedder.config.index import BuildSettings, IndexConfig
from embedder.config.label import LabelConfig, RerankerConfig
from embedder.config.language import WordsConfig
from embedder.config.mine import MineConfig
from embedder.config.paths import EncodingDtype, ModelReference, Paths, Pooling, Section
from embedder.config.pipeline import PipelineConfig
from embedder.config.prepare import PrepareConfig
from embedder.config.questions import QuestionsConfig
from embedder.config.serve import ServeConfig
from embedder.config.submit import SubmitConfig
from embedder.config.tasks import BUILTIN_TASKS, TaskSpec
from embedder.config.train import TrainConfig
from embedder.errors import ConfigError

S = TypeVar("S", bound=Section)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""Pattern of a task's name; files are named after it."""

FLEX: Final = "flex"
CHUNKED: Final = "chunked tree"
SEQUENTIAL: Final = "one sequence at a time"
TreeScorer = Literal["flex", "chunked tree"]
Scorer = Literal["flex", "chunked tree", "one sequence at a time"]
"""Ways in which the LLM scores outputs. The first two read what prompts have in common once."""


class EncoderConfig(Section):
    """The encoder as it is before training, and the actors that encode with it or with the trained one."""

    model: ModelReference
    """A folder, the URI of one in an object store, a hub name, or `package:NAME/FOLDER` for one in an installed Python
    package."""
    pooling: Pooling
    """Token states that become the vector: the first, their mean, or the last. As the model was trained."""
    instructions: bool | Literal["learned"] = True
    """The instruction of its task and side stands before each text. `true`: always; the model was trained so.
    `learned`: the training teaches them to a model that knows none. It mines and is compared without any, because a
    prefix that it does not know would handicap it and flatter the training. `false`: never. To teach them takes many
    steps: after 36 the demo's encoder was worse with them than without (DECISIONS.md)."""
    max_tokens: int = Field(default=256, ge=8)
    """Tokens of a text; longer texts are cut at the end."""
    batch_tokens: int = Field(default=2048, ge=64)
    """Padded tokens of a batch; halved when memory runs out. On a CPU 2,048 fills the caches; a GPU wants 32,768 to
    131,072."""
    dtype: EncodingDtype = "float32"
    """Number format of encoding; training has its own (`train.precision`). `bfloat16` is for GPUs from the A100 and the
    GeForce 30 series on, and holds the weights in it too. `int8` is for CPUs: about twice as fast; each vector moves a
    little, also with the other texts of its batch. A mean cosine of at least 0.99 to the exact vectors is checked at
    load."""
    num_actors: int = Field(default=2, ge=1)
    """Actors that encode side by side, in every job that encodes: `mine`, `index` and `evaluate`."""
    gpus_per_actor: float = Field(default=0, ge=0)
    """GPUs of each of these actors. 0 encodes on the CPU."""


class LlmConfig(Section):
    """The LLM whose feedback teaches the encoder."""

    model: ModelReference
    """As `encoder.model`. A folder with a single GGUF file is converted once and kept in `paths.cache`. With `endpoint`
    the folder of its tokenizer alone."""
    endpoint: LlmEndpoint | None = None
    """The server that runs the LLM (docs/engines.md). null: it is loaded from `model`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of weights and computation."""
    max_prefix_tokens: int = Field(default=1024, ge=16)
    """Tokens of a prompt without its output. A longer prompt loses tokens from the end of the candidate, never from the
    query or the output."""
    batch_tokens: int = Field(default=2048, ge=64)
    """Tokens of a batch; halved when memory runs out. On a CPU more than 2,048 is slower; a GPU wants 16,384 to
    65,536."""
    device_map: Literal["single", "auto"] = "single"
    """`auto` divides each layer over all GPUs of an actor, for an LLM that is larger than one of them."""
    scorer: Literal["auto", "flex", "chunked tree", "one sequence at a time"] = "auto"
    """How the LLM scores outputs. `auto`: by `flex` attention in bfloat16 on a GPU with a compiler, else as a `chunked
    tree`; `one sequence at a time` where the LLM has windows shorter than the prompts, or attention with soft caps,
    sinks or biases, or on a CPU fails the trial at the start. On a GPU, and for a scorer that is named, a trial that
    fails is an error. Last digits differ."""

    @property
    def weights(self) -> str | None:
        """The model whose weights are loaded here; None where a server runs it."""
        return None if self.endpoint else self.model

    @model_validator(mode="after")
    def a_server_decides_how_it_computes(self) -> LlmConfig:
        """Refuse settings of a loaded LLM for one that a server runs, where nothing would read them."""
        idle = sorted({"dtype", "batch_tokens", "device_map", "scorer"} & self.model_fields_set)
        # `dtype: float32` and so on are what a resolved run file spells out.
        named = [name for name in idle if getattr(self, name) != type(self).model_fields[name].default]
        if self.endpoint and named:
            raise ValueError(
                f"{', '.join(named)} is for an LLM that is loaded here; the server of `endpoint` decides it"
            )
        return self


class RunConfig(Section):
    """A whole run file."""

    paths: Paths
    """Folders; all jobs."""
    encoder: EncoderConfig
    """The encoder; all jobs. Of it `prepare` takes the tokenizer and `max_tokens`, to cut documents."""
    llm: LlmConfig | None = None
    """The LLM; `questions`, `label` and `evaluate`. null: no LLM."""
    tasks: dict[str, TaskSpec] = BUILTIN_TASKS
    """The tasks; all jobs. What is given is laid over the built-in tasks, field by field."""
    prepare: PrepareConfig | None = None
    """The datasets; `prepare`, which cannot do without."""
    questions: QuestionsConfig | None = None
    """Questions that the LLM writes; `questions`. null: none are written."""
    words: WordsConfig = WordsConfig()
    """Words of queries; `mine`, `evaluate` and `index`."""
    mine: MineConfig = MineConfig()
    """Candidates; `mine`."""
    label: LabelConfig = LabelConfig()
    """Rewards; `label`, and `evaluate` for its prompts."""
    reranker: RerankerConfig | None = None
    """The cross-encoder that labels; `label`, with `label.teacher: reranker` alone."""
    train: TrainConfig | None = None
    """Training; `train`, which cannot do without."""
    index: IndexConfig = IndexConfig()
    """The index; `index`, and the service for the alias."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Comparison of retrievers; `evaluate`."""
    serve: ServeConfig = ServeConfig()
    """The service; `serve.app` and `serve.ask`."""
    pipeline: PipelineConfig = PipelineConfig()
    """Rounds; `pipeline`."""
    cluster: ClusterConfig = ClusterConfig()
    """What is asked of Ray; all jobs, and the service."""
    submit: SubmitConfig = SubmitConfig()
    """How jobs are submitted to a cluster; `submit`."""

    @property
    def needed_llm(self) -> LlmConfig:
        """The section `llm`.

        Raises:
            ConfigError: there is none.
        """
        return _needed(self.llm, "llm", "llm.model, the LLM's folder")

    @property
    def needed_prepare(self) -> PrepareConfig:
        """The section `prepare`; an error if there is none."""
        return _needed(self.prepare, "prepare", "prepare.sources")

    @property
    def needed_train(self) -> TrainConfig:
        """The section `train`; an error if there is none."""
        return _needed(self.train, "train", "train.steps")

    @property
    def needed_questions(self) -> QuestionsConfig:
        """The section `questions`; an error if there is none."""
        return _needed(self.questions, "questions", "questions.passages")

    @property
    def needed_reranker(self) -> RerankerConfig:
        """The section `reranker`; an error if there is none."""
        return _needed(self.reranker, "reranker", "reranker.model")

    @property
    def build_settings(self) -> BuildSettings:
        """The settings that a collection keeps."""
        index = self.index
        return BuildSettings(factory=index.factory, lexical=index.lexical, search=index.search, words=self.words)

    @property
    def base_tasks(self) -> dict[str, TaskSpec]:
        """The tasks for the base encoder: without instructions if it is still to learn them."""
        if self.encoder.instructions is True:
            return self.tasks
        return {name: spec.without_instructions() for name, spec in self.tasks.items()}

    @model_validator(mode="before")
    @classmethod
    def complete_tasks(cls, raw: object) -> object:
        """Lay the run file's `tasks` over the built-in ones, field by field; no instructions where none are used."""
        if not isinstance(raw, dict) or not isinstance(raw.get("tasks", {}), dict):
            return raw
        # Before validation, because a part of a built-in task would not validate by itself.
        tasks: dict[str, Any] = {name: spec.model_dump() for name, spec in BUILTIN_TASKS.items()}
        # By name, because fingerprints are of tasks in their order, and the order of a run file says nothing.
        for name, fields in sorted(raw.get("tasks", {}).items(), key=lambda item: str(item[0])):
            if not isinstance(fields, dict):
                raise ValueError(f"tasks.{name} is {fields!r}; give a mapping of the task's fields")
            known = tasks.get(name, {})
            tasks[name] = {**known, **fields}
            if isinstance(fields.get("template"), dict) and known.get("template"):
                tasks[name]["template"] = {**known["template"], **fields["template"]}
        encoder = raw.get("encoder")
        instructions = (
            encoder.get("instructions") if isinstance(encoder, dict) else getattr(encoder, "instructions", None)
        )
        if instructions is False:
            tasks = {
                name: {**fields, "query_instruction": "", "passage_instruction": ""} for name, fields in tasks.items()
            }
        return {**raw, "tasks": tasks}

    @model_validator(mode="after")
    def tasks_fit(self) -> RunConfig:
        """Refuse a loss whose rewards are missing, a temperature that it does not use, and rewards without a prompt."""
        for name, spec in self.tasks.items():
            if not NAME.fullmatch(name):
                raise ValueError(f"tasks: {name!r} is no task name; use letters, digits, - and _")
            if spec.reward == "none" and spec.loss != "contrastive":
                raise ValueError(f"tasks.{name}.loss is {spec.loss!r}, which needs rewards, but reward is 'none'")
            if spec.loss == "reference" and spec.reward_temperature not in {None, 1}:
                raise ValueError(
                    f"tasks.{name}.loss is 'reference', which knows no temperature, but reward_temperature is "
                    f"{spec.reward_temperature}; leave it out, or take the loss 'graded'"
                )
            if spec.reward != "none" and spec.template is None:
                raise ValueError(f"tasks.{name}.reward is {spec.reward!r} but it has no template")
            self._refuse_unused_rewards(name, spec)
            if spec.reward == "own_answers" and not self.label.num_samples:
                raise ValueError(
                    f"tasks.{name}.reward is {spec.reward!r}, but label.num_samples is 0: the LLM would write nothing"
                )
        return self

    def _refuse_unused_rewards(self, name: str, spec: TaskSpec) -> None:
        """Refuse a choice among candidates by rewards where there are none, or where the loss learns from them."""
        if spec.false_negatives == "keep":
            return
        told = f"tasks.{name}.false_negatives is {spec.false_negatives!r}, but "
        if spec.loss != "contrastive":
            raise ValueError(f"{told}loss {spec.loss!r} learns from the rewards themselves; leave it out")
        if spec.reward == "none" and self.label.teacher != "imported":
            raise ValueError(f"{told}reward is 'none', so that nothing tells them; give the task a reward")

    @model_validator(mode="after")
    def gpus_fit(self) -> RunConfig:
        """Refuse GPUs that an actor of the LLM would leave idle."""
        for name, gpus in (("label", self.label.gpus_per_actor), ("evaluate", self.evaluate.gpus_per_actor)):
            if gpus > 1 and gpus % 1:
                raise ValueError(f"{name}.gpus_per_actor is {gpus:g}; give a whole number, or a share of one GPU")
            if gpus > 1 and self.llm and self.llm.device_map == "single":
                raise ValueError(
                    f"{name}.gpus_per_actor is {gpus:g}, but with llm.device_map 'single' an actor uses one GPU; set "
                    f"llm.device_map: auto to divide the LLM over them, or raise {name}.num_actors"
                )
        return self

    @model_validator(mode="after")
    def parts_fit(self) -> RunConfig:
        """Refuse sections that are right each by itself and wrong together."""
        if self.label.teacher == "reranker" and self.reranker is None:
            raise ValueError("label.teacher is 'reranker', but there is no `reranker` section; name its model there")
        if self.questions is not None and self.llm is None:
            raise ValueError("`questions` needs an LLM that writes them, but there is no `llm` section; name it there")
        if self.encoder.instructions == "learned" and self.train and self.train.guard:
            raise ValueError(
                "train.guard would compare with a base that reads instructions, which encoder.instructions 'learned' "
                "says it does not know; leave the guard out, or set encoder.instructions to true or false"
            )
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
        if self.train and self.train.export_task not in {None, *self.tasks}:
            raise ValueError(f"train.export_task is {self.train.export_task!r}; known tasks are {sorted(self.tasks)}")
        return self

    @model_validator(mode="after")
    def a_chat_only_judges(self) -> RunConfig:
        """Refuse to ask a chat server for what it does not tell."""
        if not (self.llm and self.llm.endpoint and self.llm.endpoint.interface == "chat"):
            return self
        if self.evaluate.asks:
            raise ValueError(
                "evaluate.llm_queries asks for log-likelihoods, which llm.endpoint.interface 'chat' does not tell; "
                "give no queries there"
            )
        if self.questions is not None:
            raise ValueError(
                "questions are checked by log-likelihoods, which llm.endpoint.interface 'chat' does not tell; use a "
                "server with completions (docs/engines.md), or an LLM that is loaded here"
            )
        return self

    @model_validator(mode="after")
    def documents_are_counted(self) -> RunConfig:
        """Let sources of documents count in the encoder's tokens, where they do not name another measure."""
        if self.prepare is None:
            return self
        usual = {"tokenizer": self.encoder.model, "chunk_tokens": self.encoder.max_tokens}
        sources = [
            source.model_copy(update={key: usual[key] for key in usual if getattr(source, key) is None})
            if source.format == "documents"
            else source
            for source in self.prepare.sources
        ]
        # Nothing changes after loading, of which this is still a part.
        object.__setattr__(self, "prepare", self.prepare.model_copy(update={"sources": sources}))
        return self


def _needed(section: S | None, name: str, key: str) -> S:
    if section is None:
        raise ConfigError(f"the run file has no `{name}` section; give it {key}")
    return section
