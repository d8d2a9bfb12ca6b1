"""Scores a sample of the labels of a run in bfloat16 once more in float32, by one task that takes an actor's place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ray
import torch
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from embedder.config.run import FLEX, RunConfig
from embedder.data.records import LABELLED, each_table, parquet_files
from embedder.errors import EmbedderError
from embedder.labelling.labeller import RewardLabeller
from embedder.labelling.rounding import Rounding, Row, compare_rounding, draw_sample
from embedder.models.causal_lm import load_lm
from embedder.models.device import resolve_device
from embedder.models.locate import count_parameters, folder_quantisation, locate_model
from embedder.models.memory import one_memory_error
from ray_jobs.cluster.tables import llm_ledger
from ray_jobs.labelling.provenance import LabelPools

UNMEASURED = "what bfloat16 changes was not measured"
QUANTISED = f"{UNMEASURED}: the weights of the LLM are quantised"
TOO_LARGE = f"{UNMEASURED}: the LLM in float32 needs more memory than there is"


def measure_rounding(config: RunConfig, pools: LabelPools) -> Rounding | str | None:
    """How far a sample of the labels is from float32; why that is not known; None where no label has ranks."""
    settings = config.label
    sample = draw_sample(_labels(config), settings.rounding_groups, settings.seed)
    if not sample:
        return None
    if folder_quantisation(locate_model(config.needed_llm.model)):
        return QUANTISED
    task = ray.remote(score_exactly).options(
        num_gpus=exact_gpus(config), num_cpus=settings.cpus_per_actor, max_retries=0
    )
    try:
        found: Rounding | str | None = ray.get(task.remote(config, pools, sample))
    except (OutOfMemoryError, WorkerCrashedError):
        # The labels are complete, and what is measured of them is no reason to fail.
        return TOO_LARGE
    return found


def exact_gpus(config: RunConfig) -> float:
    """The GPUs for it: a whole one at least, since the weights take twice the memory of those of an actor."""
    return max(1, config.label.gpus_per_actor) if config.label.gpus_per_actor else 0


def _labels(config: RunConfig) -> Iterator[Row]:
    for table in each_table(parquet_files(llm_ledger(config.paths).folder), LABELLED):
        yield from table.to_pylist()


def score_exactly(config: RunConfig, pools: LabelPools, sample: Sequence[dict[str, Any]]) -> Rounding | str | None:
    """Load the LLM in float32 and score the outputs of the sample with it; or say why that cannot be done."""
    given, gpus = config.needed_llm, exact_gpus(config)
    # Flex attention is for half precision. Any other scorer stays, since the LLM may be right with that one alone.
    llm = given.model_copy(update={"dtype": "float32", "scorer": "auto" if given.scorer == FLEX else given.scorer})
    try:
        device = resolve_device(gpus)
        if device.type == "cuda":
            # All weights would be read before it shows that they do not fit.
            free = sum(torch.cuda.mem_get_info(number)[0] for number in range(int(gpus)))
            if 4 * count_parameters(locate_model(llm.model)) > free:
                return TOO_LARGE
        with one_memory_error():
            lm = load_lm(llm, config.paths.cache, device, gpus)
            labeller = RewardLabeller(lm, llm, config.label, config.tasks, *pools)
            return compare_rounding(sample, labeller.rescore(sample), config.tasks)
    except torch.OutOfMemoryError:
        return TOO_LARGE
    except EmbedderError as error:
        # The labels are complete, so what goes wrong here is told and fails nothing.
        return f"{UNMEASURED}: {error}"
