"""What a sentence-transformers folder says of pooling, length and prompts, so that we load it as it was made.

The one reader of such folders: of encoders that are compared, and of the one a training starts from. Needs no torch.
https://www.sbert.net: modules.json lists the modules, 1_Pooling/config.json names the pooling (in older folders by one
flag a kind), sentence_bert_config.json the longest text, config_sentence_transformers.json the prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedder.config.evaluate import EndpointRetriever, FolderRetriever
from embedder.config.paths import Pooling
from embedder.config.run import EncoderConfig
from embedder.config.tasks import BUILTIN_TASKS, Side, TaskSpec
from embedder.errors import ConfigError, ModelError
from embedder.models.locate import model_folder, read_modules
from embedder.models.weight_files import read_object

POOLING_MODES: dict[Pooling, tuple[str, str]] = {
    "cls": ("cls", "pooling_mode_cls_token"),
    "mean": ("mean", "pooling_mode_mean_tokens"),
    "last": ("lasttoken", "pooling_mode_lasttoken"),
}
"""The name of a pooling since sentence-transformers 5.4, and its flag before."""
POOLINGS = {name: pooling for pooling, names in POOLING_MODES.items() for name in names}
PROMPTS_FILE = "config_sentence_transformers.json"
KNOWN_MODULES = {"Transformer", "Pooling", "Normalize"}
PROMPT_NAMES: dict[Side, tuple[str, ...]] = {"query": ("query",), "passage": ("document", "passage", "corpus")}


@dataclass(frozen=True)
class FolderFacts:
    """What a folder says of itself; None where it does not."""

    pooling: Pooling | None = None
    max_tokens: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""

    def prompt(self, task: str, side: Side) -> str:
        """The prompt of one side for a task: `TASK_SIDE`, else that of the side, else the default one, else none.

        A folder with prompts by task has the plain ones for readers that know no tasks: another task has none there.
        """
        plain = () if known_tasks(self.prompts) else PROMPT_NAMES[side]
        names = (f"{task}_{side}", *plain)
        return next((self.prompts[name] for name in names if name in self.prompts), self.default_prompt)


def read_folder(model: str) -> FolderFacts:
    """The facts of a model folder; nothing is known of a plain Hugging Face folder.

    Raises:
        DataError: nothing is there in the object store, or it does not answer or refuses.
        ModelError: the folder is missing, or its vectors cannot be made with pooling alone.
    """
    folder = model_folder(model)
    listed = read_modules(folder)
    if not listed:
        return FolderFacts()
    listing = folder / "modules.json"
    modules = {str(module.get("type")).rpartition(".")[2]: folder / str(module.get("path")) for module in listed}
    unknown = sorted(modules.keys() - KNOWN_MODULES)
    if unknown or "Transformer" not in modules or "Pooling" not in modules:
        raise ModelError(
            f"{listing}: modules {sorted(modules)}; only a transformer, pooling and normalisation can be loaded. Take "
            "another model, or where it is only compared, serve it behind an OpenAI-compatible endpoint"
        )
    settings = _settings(folder / PROMPTS_FILE)
    if "Normalize" not in modules and settings.get("similarity_fn_name") not in (None, "cosine"):
        raise ModelError(f"{folder}: ranks by {settings['similarity_fn_name']!r}; only the cosine is known here")
    lengths = [_settings(path / "sentence_bert_config.json") for path in (folder, modules["Transformer"])]
    if any(length.get("do_lower_case") for length in lengths):
        raise ModelError(f"{folder}: do_lower_case is true in sentence_bert_config.json, which is not known here")
    pooling = _settings(modules["Pooling"] / "config.json")
    if pooling.get("include_prompt") is False:
        raise ModelError(f"{folder}: its pooling leaves the prompt out (include_prompt), which is not known here")
    given = settings.get("prompts")
    prompts = {name: text for name, text in given.items() if isinstance(text, str)} if isinstance(given, dict) else {}
    limits = [length.get("max_seq_length") for length in lengths]
    return FolderFacts(
        pooling=_pooling(pooling, folder),
        max_tokens=next((limit for limit in limits if type(limit) is int and limit > 0), None),
        prompts=prompts,
        default_prompt=prompts.get(str(settings.get("default_prompt_name")), ""),
    )


def check_base_model(encoder: EncoderConfig) -> None:
    """Refuse a sentence-transformers folder of which our encoder would make something else.

    A plain Hugging Face folder says nothing of pooling.

    Raises:
        ConfigError: it pools in another way than the run file says.
        ModelError: it is missing, or its vectors cannot be made with pooling alone.
    """
    pooling = read_folder(encoder.model).pooling
    if pooling not in (None, encoder.pooling):
        raise ConfigError(
            f"encoder.pooling is {encoder.pooling!r}, but {encoder.model} was made with {pooling!r}; set it accordingly"
        )


def _pooling(settings: Mapping[str, Any], folder: Path) -> Pooling:
    named = settings.get("pooling_mode")
    modes = named if isinstance(named, list) else [named]
    if named is None:
        modes = [name for name, on in settings.items() if name.startswith("pooling_mode_") and on]
    if len(modes) != 1 or str(modes[0]) not in POOLINGS:
        raise ModelError(f"{folder}: pooling is {modes}; only one of cls, mean and the last token is known here")
    return POOLINGS[str(modes[0])]


def _settings(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def folder_encoder(
    retriever: FolderRetriever, run: EncoderConfig, tasks: Mapping[str, TaskSpec]
) -> tuple[EncoderConfig, dict[str, TaskSpec]]:
    """How to load the encoder of a folder, and the tasks with its own prompts as instructions.

    Raises:
        ModelError: its pooling is not known.
    """
    facts = read_folder(retriever.model)
    pooling = retriever.pooling or facts.pooling
    if pooling is None:
        raise ModelError(
            f"retriever {retriever.name!r}: {retriever.model} does not say how it pools; add pooling: cls, mean or last"
        )
    wanted = retriever.max_tokens or run.max_tokens
    longest = min(wanted, facts.max_tokens) if facts.max_tokens else wanted
    config = EncoderConfig(
        model=retriever.model, pooling=pooling, max_tokens=longest, batch_tokens=max(run.batch_tokens, 64)
    )
    return config, with_prompts(tasks, retriever, facts)


def with_prompts(
    tasks: Mapping[str, TaskSpec], retriever: FolderRetriever | EndpointRetriever, facts: FolderFacts
) -> dict[str, TaskSpec]:
    """The tasks with the prompts of a retriever, or else of its folder, in place of the instructions."""
    prompted = {}
    for name, spec in tasks.items():
        query, passage = retriever.query_prompt, retriever.passage_prompt
        query = facts.prompt(name, "query") if query is None else query
        passage = facts.prompt(name, "passage") if passage is None else passage
        prompted[name] = spec.model_copy(update={"query_instruction": query, "passage_instruction": passage})
    return prompted


def plain_task_of(trained: Iterable[str], wanted: str | None = None) -> str:
    """The task of the prompts `query` and `document`: the wanted one, else the first of the trained ones.

    First are the built-in tasks in their order, then others by name.
    """
    order = list(BUILTIN_TASKS)
    return wanted or min(trained, key=lambda name: (order.index(name) if name in order else len(order), name))


def known_tasks(prompts: Mapping[str, str]) -> list[str]:
    """The tasks whose two prompts a folder has."""
    names = [name.removesuffix("_query") for name in prompts if name.endswith("_query")]
    return [name for name in names if f"{name}_passage" in prompts]
