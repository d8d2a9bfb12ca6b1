"""The model card: README.md of the exported folder, as model hubs read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from embedder import __version__
from embedder.config.run import RunConfig
from embedder.reporting.html import render


def model_card(config: RunConfig, numbers: Mapping[str, Any]) -> str:
    """Tasks with their prompts, data, settings and metrics; placeholders where only the publisher knows.

    `numbers`: from `training_report.summarise`. The same training gives the same card.
    """
    blocks = {"base_model": {"base_model": config.encoder.model}, "settings": numbers["settings"]}
    shown = {name: yaml.safe_dump(block, sort_keys=False, allow_unicode=True) for name, block in blocks.items()}
    return render("model_card.md.j2", version=__version__, config=config, numbers=numbers, yaml=shown) + "\n"
