"""What a folder says of itself that a training starts from. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path

from embedder.config.run import EncoderConfig
from embedder.errors import ConfigError
from embedder.models.locate import locate_model

TRAINED = {"Transformer", "Pooling", "Normalize"}
"""Modules of a sentence-transformers folder that our encoder has too."""
POOLINGS = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
"""By its name there."""


def check_start(encoder: EncoderConfig) -> None:
    """Refuse a sentence-transformers folder that another encoder than ours would be made of.

    A plain Hugging Face folder says nothing of pooling, and hub models are not known before the download.

    Raises:
        ConfigError: it has further layers, or pools in another way than the run file says.
        ModelError: there is no such folder.
    """
    folder = locate_model(encoder.model)
    if isinstance(folder, str) or not (folder / "modules.json").is_file():
        return
    for module in json.loads((folder / "modules.json").read_text(encoding="utf-8")):
        kind = module["type"].rsplit(".", 1)[-1]
        if kind not in TRAINED:
            raise ConfigError(
                f"encoder.model {encoder.model}: modules.json lists a module {kind}, which would be lost; start from a "
                f"model of {', '.join(sorted(TRAINED))} alone"
            )
        if kind == "Pooling":
            _check_pooling(folder / module["path"] / "config.json", encoder)


def _check_pooling(path: Path, encoder: EncoderConfig) -> None:
    """`pooling_mode` names the way, or in older folders `pooling_mode_NAME` (`_tokens`) is true for it."""
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    named = config.get("pooling_mode")
    flags = {
        key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens"): value
        for key, value in config.items()
        if key.startswith("pooling_mode_")
    }
    found = [named] if isinstance(named, str) else [name for name, value in flags.items() if value]
    if found and [POOLINGS.get(name) for name in found] != [encoder.pooling]:
        raise ConfigError(
            f"encoder.pooling is {encoder.pooling!r}, but {encoder.model} was made with {' and '.join(found)!r}; "
            f"set encoder.pooling accordingly ({', '.join(sorted(set(POOLINGS.values())))})"
        )
