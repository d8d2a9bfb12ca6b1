"""Low-rank additions to an encoder's weights (LoRA, Hu et al. 2021) through peft."""

from __future__ import annotations

from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model

from embedder.config.train import LoraConfig
from embedder.errors import ConfigError
from embedder.models.encoder import TextEncoder


def add_adapters(encoder: TextEncoder, config: LoraConfig) -> None:
    """Give the encoder low-rank additions and freeze all the rest.

    Raises:
        ConfigError: it has no module of a wanted name.
    """
    settings = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
        exclude_modules=r"(.*\.)?pooler(\..*)?",
    )
    try:
        encoder.backbone = get_peft_model(encoder.backbone, settings)
    except ValueError as error:
        raise ConfigError(f"train.lora.target_modules is {config.target_modules!r}: {error}") from error


def merge_adapters(encoder: TextEncoder) -> None:
    """Add the low-rank parts to the weights, which leaves a plain encoder."""
    if isinstance(encoder.backbone, PeftModel):
        encoder.backbone = encoder.backbone.merge_and_unload()
