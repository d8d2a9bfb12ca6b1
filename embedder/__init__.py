"""The method of LLM-Embedder: rewards, distillation, encoding, index and bundle. Needs neither Ray nor the web.

answer_text  when two answers are the same
console      what commands print to: progress, and the one line that an error ends with
credentials  what looks like a credential, and is neither uploaded, printed nor kept
errors       every error that is raised on purpose
interrupt    Ctrl-C: one line, status 130, gone in a few seconds
hashing      ids, seeds and file hashes that depend on content alone
words        the words of a text, for everything that matches words

Each package says in its own docstring what is in its files.
"""

import os

# Before anything imports bm25s, which imports JAX where that is installed and computes at once: by itself JAX then
# takes three quarters of a GPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

__version__ = "0.1.0"
