"""The model card: README.md of the exported folder, as model hubs read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from embedder import __version__
from embedder.config.run import RunConfig

UNKNOWN = "TODO: state it before you publish this model"


def model_card(config: RunConfig, numbers: Mapping[str, Any]) -> str:
    """Tasks with their prompts, data, settings and metrics; placeholders where only the publisher knows.

    `numbers`: from `report.summarise`. The same training gives the same card.
    """
    head = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "sentence-similarity", "feature-extraction", "llm-embedder"],
        "base_model": config.encoder.model,
        "license": "other",
    }
    first = next(iter(numbers["tasks"]), "qa")
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {config.paths.work.name}",
        f"A text encoder for retrieval, trained by LLM-Embedder {__version__} from `{config.encoder.model}` "
        f"({config.encoder.pooling} pooling, unit vectors, texts of up to {config.encoder.max_tokens} tokens).",
        "## Use",
        "```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        'model = SentenceTransformer("PATH_OF_THIS_FOLDER")\n'
        f'queries = model.encode(["..."], prompt_name="{first}_query")\n'
        f'passages = model.encode(["..."], prompt_name="{first}_passage")\n```',
        "## Tasks and prompts",
        _table(("task", "prompt of a query", "prompt of a passage"), _prompts(config)),
        "## Training data",
        _table(("task", "groups", "loss", "reward"), _data(config, numbers)),
        _sources(config),
        f"Teacher: {_teacher(config)}.",
        "## Metrics",
        _metrics(numbers),
        "## Settings",
        f"```yaml\n{yaml.safe_dump(numbers['settings'], sort_keys=False)}```",
        "## Licence, limits, contact",
        f"- Licence of these weights: {UNKNOWN}. It depends on that of the base encoder and, where rewards come from "
        "an LLM, on what its licence says of its outputs.",
        f"- Licences of the training data: {UNKNOWN}.",
        f"- Languages, intended use, known weaknesses: {UNKNOWN}.",
        f"- Contact: {UNKNOWN}.",
    ]
    return "\n\n".join(parts) + "\n"


def _prompts(config: RunConfig) -> list[tuple[str, ...]]:
    return [
        (name, f"`{spec.query_instruction}`", f"`{spec.passage_instruction}`")
        for name, spec in sorted(config.tasks.items())
    ]


def _data(config: RunConfig, numbers: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (task, f"{one['rows']:,}", config.tasks[task].loss, config.tasks[task].reward)
        for task, one in numbers["tasks"].items()
    ]


def _sources(config: RunConfig) -> str:
    sources = config.prepare.sources if config.prepare else []
    return "Datasets: " + (", ".join(f"{one.dataset} ({one.task})" for one in sources) or UNKNOWN) + "."


def _teacher(config: RunConfig) -> str:
    match config.label.teacher:
        case "llm":
            return f"the LLM `{config.llm.model}`" if config.llm else "known positives alone, no LLM"
        case "reranker":
            return "a cross-encoder that learned the rewards of an LLM"
        case "imported":
            return "rewards made elsewhere"


def _metrics(numbers: Mapping[str, Any]) -> str:
    validation = numbers["validation"]
    if validation is None:
        rows = [(task, _four(one["loss_first"]), _four(one["loss_last"])) for task, one in numbers["tasks"].items()]
        return "Training loss, no validation split.\n\n" + _table(("task", "first fifth", "last fifth"), rows)
    first, best = validation["history"][0], validation["history"][validation["best"]]
    rows = [(task, _four(first["tasks"][task]), _four(value)) for task, value in best["tasks"].items()]
    rows.append(("mean", _four(first["mean"]), _four(best["mean"])))
    lead = f"NDCG@{validation['cutoff']} on held-out training queries, after {best['steps']:,} steps."
    return f"{lead}\n\n" + _table(("task", "base encoder", "this encoder"), rows)


def _four(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
