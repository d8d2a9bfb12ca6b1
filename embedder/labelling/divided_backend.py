"""The backend of an LLM that several GPUs share: each of their processes does what this one does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from embedder.labelling.compute_cost import ModelWork
from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.sampling import Sampling
from embedder.labelling.sequential_backend import SequentialBackend
from embedder.labelling.tree_backend import TreeBackend
from embedder.models.causal_lm import CausalLm
from embedder.models.memory import BatchLimit
from embedder.models.tensor_parallel import Followers

OwnBackend = TreeBackend | SequentialBackend


class DividedBackend:
    """Scores and samples with the backend that `choose` makes, in every process at the same time."""

    def __init__(self, lm: CausalLm, followers: Followers, choose: Callable[[CausalLm], OwnBackend]) -> None:
        self.lm, self._followers = lm, followers
        self._number, self.worker = followers.begin(choose, lm)

    @property
    def how(self) -> str:
        """How outputs are scored."""
        return self.worker.how

    @property
    def limits(self) -> Sequence[BatchLimit]:
        """The limits of rank 0, which are those of all."""
        return self.worker.limits

    @property
    def work(self) -> ModelWork:
        """The work of all GPUs together."""
        return self.worker.work

    def score(self, prompts: Sequence[PackedPrompt]) -> list[list[float]]:
        """The scores of rank 0."""
        scores: list[list[float]] = self._followers.call(self._number, "score", list(prompts))
        return scores

    def sample(self, prefixes: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling) -> list[list[list[int]]]:
        """The outputs of rank 0, which are those of all."""
        given = list(prefixes), list(seeds), sampling
        drawn: list[list[list[int]]] = self._followers.call(self._number, "sample", *given)
        return drawn
