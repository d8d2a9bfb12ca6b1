"""A tiny LLM that has learned to write questions of one form, and passages that these fit."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.conftest import save_lm

PLACES = ["market", "bridge", "forest", "station", "harbour", "castle", "garden", "valley"]
THINGS = ["fox", "dog", "bell", "boat", "lamp", "wheel", "clock", "stone"]
COLORS = ["red", "blue", "green", "brown", "white", "black", "grey", "gold"]
EXAMPLE = {
    "kind": "fact",
    "passages": ["The brown fox is in the market."],
    "query": "what color has the fox of the market?",
    "output": "brown",
}


def passage(number: int) -> str:
    """One of many passages, each with some colors, things and places."""
    draw = random.Random(number)
    colors = draw.sample(COLORS, 5)
    told = [f"the {color} {draw.choice(THINGS)} is in the {draw.choice(PLACES)}" for color in colors]
    return f"Number {number}: {', and '.join(told)}."


def _prompt(draw: random.Random) -> str:
    """An example, a passage, and what the LLM is to write of it."""
    example = f"Passage: {EXAMPLE['passages'][0]}\nQuestion: {EXAMPLE['query']}\nAnswer: {EXAMPLE['output']}"
    words = [draw.choice(each) for each in (COLORS, THINGS, PLACES, THINGS, PLACES)]
    question = f"what is by the {words[1]} and the {words[2]} or the {words[3]} near the {words[4]}?"
    return f"{example}\n\nPassage: {passage(draw.randrange(10_000))}\nQuestion: {question}\nAnswer: {words[0]}\n\n"


def save_writing_llm(folder: Path, steps: int = 150) -> Path:
    """Train it and write its folder."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    save_lm(folder, model)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = random.Random(1)
    for _ in range(steps):
        rows = [torch.tensor(tokenizer(_prompt(draw), add_special_tokens=False)["input_ids"]) for _ in range(4)]
        ids = pad_sequence(rows, batch_first=True)
        loss = model(input_ids=ids, labels=pad_sequence(rows, batch_first=True, padding_value=-100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return save_lm(folder, model)
