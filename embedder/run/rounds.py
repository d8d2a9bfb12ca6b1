"""The rounds of a run: the settings of each stage in each round, in the order in which they are done."""

from __future__ import annotations

from embedder.config.run import RunConfig
from embedder.storage.object_store import reference_of

EACH_ROUND = ("mine", "label", "train")
AT_THE_END = ("index", "evaluate")


def round_config(config: RunConfig, number: int) -> RunConfig:
    """The settings of mine, label and train in a round; each starts from the encoder of the one before."""
    if number == 1:
        return config
    trained = round_config(config, number - 1).paths.model
    learned = bool(config.encoder.instructions)
    encoder = config.encoder.model_copy(update={"model": reference_of(trained), "instructions": learned})
    return config.model_copy(update={"paths": config.paths.model_copy(update={"round": number}), "encoder": encoder})


def planned_stages(config: RunConfig) -> list[tuple[str, RunConfig]]:
    """All stages of all rounds in order. At the end the run's own encoder is the base of the comparison.

    A run without training, whose index has an encoder of its own (`index.model`), is prepared and indexed, and
    evaluated where no retriever of a training is asked for.
    """
    if is_untrained(config):
        measured = [] if config.evaluate.compares_trained else [("evaluate", config)]
        return [("prepare", config), ("index", config), *measured]
    rounds = config.pipeline.rounds
    repeated = [(stage, round_config(config, number)) for number in range(1, rounds + 1) for stage in EACH_ROUND]
    last = config.model_copy(update={"paths": config.paths.model_copy(update={"round": rounds})})
    written = [("questions", config)] if config.questions is not None else []
    return [("prepare", config), *written, *repeated, *((stage, last) for stage in AT_THE_END)]


def is_untrained(config: RunConfig) -> bool:
    """Tell whether a run serves an encoder as it is: no section `train`, and `index.model` names one."""
    return config.train is None and config.index.model is not None


def stage_title(stage: str, config: RunConfig) -> str:
    """The stage, and the round where it is not the first."""
    number = config.paths.round
    return stage if number == 1 else f"{stage}, round {number}"
