"""An encoder with the instructions of its tasks: texts to vectors, and passages ranked for a query.

N texts, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedder.config.cutting import PromptedText
from embedder.config.evaluate import FolderRetriever
from embedder.config.paths import Pooling
from embedder.config.run import EncoderConfig
from embedder.config.tasks import BUILTIN_TASKS, Side, TaskSpec
from embedder.errors import ConfigError
from embedder.models.device import resolve_device
from embedder.models.encoder import TextEncoder, encode_prompted
from embedder.models.onnx import load_inference_encoder
from embedder.models.st_folder import folder_encoder
from embedder.notebook.workers import Workers, refuse_single_text

TEXTS_AT_ONCE = 512
"""Texts that a worker is given at a time."""


class RankedPassage(NamedTuple):
    """A passage by its position in the list that was ranked, and its inner product with the query."""

    position: int
    score: float


@dataclass(frozen=True)
class Encoder:
    """How an encoder is loaded, and the tasks with the instructions it is given."""

    settings: EncoderConfig
    tasks: Mapping[str, TaskSpec]

    @cached_property
    def loaded(self) -> TextEncoder:
        """The model, loaded in this process when the first text is encoded."""
        return load_inference_encoder(self.settings, resolve_device(self.settings.gpus_per_actor))

    def encode(
        self, texts: Sequence[str], task: str = "qa", side: Side = "passage", workers: Workers | None = None
    ) -> NDArray[np.float32]:
        """Unit vectors (N, D) of texts, each behind the instruction of its task and side.

        Raises:
            ConfigError: the task is not known, or `texts` is a single text.
        """
        refuse_single_text(texts, "texts")
        spec = task_named(self.tasks, task)
        prompted = [spec.prompted(side, text) for text in texts]
        if workers is None or not prompted:
            return encode_prompted(self.loaded, prompted)
        parts = [prompted[first : first + TEXTS_AT_ONCE] for first in range(0, len(prompted), TEXTS_AT_ONCE)]
        return np.concatenate(workers.map(partial(_encoding, self.settings), parts, self.settings.gpus_per_actor))

    def rank(
        self, query: str, passages: Sequence[str], task: str = "qa", k: int = 10, workers: Workers | None = None
    ) -> list[RankedPassage]:
        """The `k` best passages for a query, best first; of equal ones the earlier first. Raises as `encode` does."""
        passage_ND = self.encode(passages, task, "passage", workers)
        scores = passage_ND @ self.encode([query], task, "query")[0]
        order = np.argsort(-scores, kind="stable")[:k]
        return [RankedPassage(int(i), float(scores[i])) for i in order]


def load_encoder(
    model: str,
    *,
    pooling: Pooling | None = None,
    max_tokens: int = 256,
    tasks: Mapping[str, TaskSpec] | None = None,
    gpus: float = 0,
) -> Encoder:
    """An encoder from a folder, a hub name, or `package:NAME/FOLDER`, such as the `model` folder of a run.

    Args:
        model: As `encoder.model` of a run file.
        pooling: As the model was trained. None: as its sentence-transformers files say.
        max_tokens: Tokens of a text; longer ones are cut, and always to what the folder allows.
        tasks: Tasks with the instructions to use, such as `embedder.BUILTIN_TASKS`. None: the built-in tasks with the
            prompts of the folder in place of their instructions, which are none in a folder without prompts.
        gpus: 0 encodes on the CPU.

    Raises:
        ModelError: the folder is missing, or does not say how it pools.
    """
    named = FolderRetriever(name="encoder", model=model, pooling=pooling, max_tokens=max_tokens)
    usual = EncoderConfig(model=model, pooling=pooling or "mean", max_tokens=max_tokens)
    found, prompted = folder_encoder(named, usual, tasks or BUILTIN_TASKS)
    return Encoder(found.model_copy(update={"gpus_per_actor": gpus}), dict(tasks) if tasks else prompted)


def task_named(tasks: Mapping[str, TaskSpec], name: str) -> TaskSpec:
    """The task of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in tasks:
        near = get_close_matches(str(name), tasks, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no task {name!r}; there are {', '.join(sorted(tasks))}{meant}")
    return tasks[name]


def _encoding(settings: EncoderConfig, gpus: float) -> Callable[[list[PromptedText]], NDArray[np.float32]]:
    """Load the encoder in a worker; returns what encodes a part."""
    return partial(encode_prompted, load_inference_encoder(settings, resolve_device(gpus)))
