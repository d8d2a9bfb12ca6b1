"""The model card: README.md of the exported folder, as model hubs read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from embedder import __version__
from embedder.config.run import RunConfig
from embedder.models.st_folder import plain_task_of
from embedder.reporting.html import render
from embedder.training.batch_plan import task_shares


def model_card(config: RunConfig, numbers: Mapping[str, Any]) -> str:
    """Tasks with their prompts, data, settings and metrics; placeholders where only the publisher knows.

    `numbers`: from `training_report.summarise`. The same training gives the same card.
    """
    blocks = {"base_model": {"base_model": config.encoder.model}, "settings": numbers["settings"]}
    trained = task_shares({name: task["rows"] for name, task in numbers["tasks"].items()}, config.needed_train)
    plain = plain_task_of(trained, config.needed_train.export_task)
    shown = {name: yaml.safe_dump(block, sort_keys=False, allow_unicode=True) for name, block in blocks.items()}
    card = render("model_card.md.j2", version=__version__, config=config, numbers=numbers, yaml=shown, plain_task=plain)
    return card + "\n"
