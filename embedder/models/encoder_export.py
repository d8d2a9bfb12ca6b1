"""A trained encoder as a folder that sentence-transformers, vLLM, text-embeddings-inference and infinity read too.

    python -m embedder.models.encoder_export MODEL --task tool

lets `encode_query` and `encode_document` serve another task. The prompts of all tasks are in the folder as `TASK_query`
and `TASK_passage`. Beside them `query` and `document` are those of one task, because other tools ask for these two
names. docs/serving.md tells what each tool reads.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedder.config.paths import Pooling
from embedder.config.tasks import TaskSpec
from embedder.console import console, exit_on_error
from embedder.errors import ModelError
from embedder.models.encoder import TextEncoder
from embedder.models.st_folder import POOLING_MODES, PROMPTS_FILE, known_tasks, plain_task_of
from embedder.storage.json_file import write_json

SIDES = {"query": "query", "passage": "document"}
"""Our name of a side, and the one that `encode_query` and `encode_document` look for."""
OTHER_FLAGS = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")


def export_encoder(
    encoder: TextEncoder, folder: Path, tasks: Mapping[str, TaskSpec], plain_task: str | None = None
) -> None:
    """Write the folder; `query` and `document` are the prompts of `plain_task`, else of the first built-in task."""
    prompts = prompts_of(tasks, plain_task_of(tasks, plain_task))
    folder.mkdir(parents=True, exist_ok=True)
    encoder.backbone.save_pretrained(folder, safe_serialization=True)
    encoder.tokenizer.save_pretrained(folder)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    files = {
        "modules.json": [
            # By the names of before 5.4, which other tools know and sentence-transformers reads as well.
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(modules)
        ],
        "sentence_bert_config.json": {"max_seq_length": encoder.config.max_tokens, "do_lower_case": False},
        PROMPTS_FILE: {"prompts": prompts, "similarity_fn_name": "cosine"},
        "1_Pooling/config.json": pooling_settings(encoder.config.pooling, encoder.dimension),
        "2_Normalize/config.json": {},
    }
    for name, value in files.items():
        write_json(value, folder / name)


def pooling_settings(pooling: Pooling, dimension: int) -> dict[str, Any]:
    """`1_Pooling/config.json` in both of its forms, of which the newer one counts where a reader knows it."""
    mode, flag = POOLING_MODES[pooling]
    flags = [*(old for _, old in POOLING_MODES.values()), *OTHER_FLAGS]
    return {
        "word_embedding_dimension": dimension,
        "pooling_mode": mode,
        **{name: name == flag for name in flags},
        # After the flags, because vLLM up to 0.23 takes the first value that is true for the pooling.
        "include_prompt": True,
    }


def prompts_of(tasks: Mapping[str, TaskSpec], plain_task: str) -> dict[str, str]:
    """The prompts of all tasks, and of one of them also under the names that other tools ask for."""
    named = {f"{name}_{side}": spec.instruction(side) for name, spec in tasks.items() for side in ("query", "passage")}
    return {**named, **plain_prompts(named, plain_task)}


def plain_prompts(prompts: Mapping[str, str], task: str) -> dict[str, str]:
    """`query` and `document` as the prompts of a task."""
    return {plain: prompts[f"{task}_{side}"] for side, plain in SIDES.items()}


def choose_plain_task(folder: Path, task: str) -> None:
    """Let `query` and `document` of an exported folder be the prompts of another task.

    Raises:
        ModelError: it is no exported folder, or has no such task.
    """
    path = folder / PROMPTS_FILE
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        prompts: dict[str, str] = settings["prompts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: no prompts of an exported encoder ({error}); give the folder `train` wrote"
        ) from error
    known = known_tasks(prompts)
    if task not in known:
        raise ModelError(f"{path}: no prompts of task {task!r}; known are {known}")
    write_json({**settings, "prompts": {**prompts, **plain_prompts(prompts, task)}}, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Choose the task of an exported folder."""
    parser = argparse.ArgumentParser(prog="python -m embedder.models.encoder_export", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", type=Path, help="folder that `train` wrote")
    parser.add_argument("--task", required=True, help="task whose instructions `query` and `document` are to be")
    options = parser.parse_args(arguments)
    with exit_on_error():
        choose_plain_task(options.model, options.task)
        console().print(f"{options.model}: query and document are now the prompts of {options.task}", markup=False)


if __name__ == "__main__":
    main()
