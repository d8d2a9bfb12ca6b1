"""The method of LLM-Embedder: rewards, distillation, encoding, index and bundle. Needs neither Ray nor the web.

answer_text  when two answers are the same
console      what commands print to: progress, and the one line that an error ends with
credentials  what looks like a credential, and is neither uploaded, printed nor kept
errors       every error that is raised on purpose
interrupt    Ctrl-C: one line, status 130, gone in a few seconds
hashing      ids, seeds and file hashes that depend on content alone
words        the words of a text, for everything that matches words

Each package says in its own docstring what is in its files. What a notebook needs is here under its own name
(docs/python.md), and is imported when it is asked for: `import embedder` brings no torch.
"""

import importlib
import os
from typing import Any

# Before anything imports bm25s, which imports JAX where that is installed and computes at once: by itself JAX then
# takes three quarters of a GPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

__version__ = "0.1.0"

_PUBLIC = {
    "load_encoder": "embedder.notebook.encoding",
    "load_llm": "embedder.notebook.rewarding",
    "candidate_group": "embedder.notebook.rewarding",
    "train": "embedder.notebook.teaching",
    "evaluate": "embedder.notebook.comparing",
    "open_index": "embedder.notebook.searching",
    "BUILTIN_TASKS": "embedder.config.tasks",
    "EvaluateConfig": "embedder.config.evaluate",
    "LabelConfig": "embedder.config.label",
    "TrainConfig": "embedder.config.train",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """A public name, from the module that defines it."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'embedder' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
