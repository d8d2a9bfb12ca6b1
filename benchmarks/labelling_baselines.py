"""What the labeller is compared with: stock transformers, used as the reference and most others use it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from embedder.labelling.prefix_tree import PackedPrompt
from embedder.labelling.sampling import Sampling

IGNORED = -100
REFERENCE_BATCH = 4
Pair = tuple[list[int], list[int]]
"""A prefix and one output."""


def stock_model(folder: Path | str) -> PreTrainedModel:
    """The LLM as transformers loads it, in float32: nothing packed, nothing replaced."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def exact_model(folder: Path | str) -> PreTrainedModel:
    """The LLM in float64, with the attention that transformers writes out step by step."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()


@torch.inference_mode()
def padded_scores(model: PreTrainedModel, prompts: Sequence[PackedPrompt], batch_size: int) -> list[list[float]]:
    """Mean token log-likelihoods (nats): each output a sequence of its own, `batch_size` at a time, right-padded."""
    sequences = [(prompt.prefix, output) for prompt in prompts for output in prompt.outputs]
    batches = [sequences[start : start + batch_size] for start in range(0, len(sequences), batch_size)]
    scores = iter([value for batch in batches for value in _padded_batch(model, batch).tolist()])
    return [[next(scores) for _ in prompt.outputs] for prompt in prompts]


def _padded_batch(model: PreTrainedModel, sequences: Sequence[Pair]) -> Tensor:
    """(B,): logits of every place, cross-entropy in the model's own precision, places before the output ignored."""
    longest = max(len(prefix) + len(output) for prefix, output in sequences)
    ids_BL = torch.zeros((len(sequences), longest), dtype=torch.long)
    mask_BL, label_BL = torch.zeros_like(ids_BL), torch.full_like(ids_BL, IGNORED)
    for row, (prefix, output) in enumerate(sequences):
        stop = len(prefix) + len(output)
        ids_BL[row, :stop] = torch.tensor(prefix + output)
        mask_BL[row, :stop] = 1
        label_BL[row, len(prefix) : stop] = ids_BL[row, len(prefix) : stop]
    ids_BL, mask_BL, label_BL = (tensor.to(model.device) for tensor in (ids_BL, mask_BL, label_BL))
    logits_BLV = model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).logits
    next_BL = label_BL[:, 1:]
    loss_BL = F.cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1), next_BL.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(next_BL)
    return -loss_BL.sum(1) / (next_BL != IGNORED).sum(1)


@torch.inference_mode()
def exact_scores(model: PreTrainedModel, prompts: Sequence[PackedPrompt]) -> list[list[float]]:
    """The same from a float64 model, one sequence at a time."""
    return [[_exact_score(model, prompt.prefix, output) for output in prompt.outputs] for prompt in prompts]


def _exact_score(model: PreTrainedModel, prefix: list[int], output: list[int]) -> float:
    ids_T = torch.tensor(prefix + output)
    logits_EV = model(input_ids=ids_T.unsqueeze(0), use_cache=False, logits_to_keep=len(output) + 1).logits[0, :-1]
    return float(logits_EV.log_softmax(-1).gather(1, ids_T[len(prefix) :, None]).mean())


@torch.inference_mode()
def generated_tokens(
    model: PreTrainedModel, prefixes: Sequence[list[int]], samples: int, seed: int, sampling: Sampling
) -> int:
    """Draw `samples` outputs of each prefix by one call of `generate` each; the number of tokens before their ends."""
    torch.manual_seed(seed)
    kept = 0
    for prefix in prefixes:
        for _ in range(samples):
            drawn = model.generate(
                torch.tensor([prefix], device=model.device),
                do_sample=True,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                max_new_tokens=sampling.max_tokens,
                eos_token_id=sorted(sampling.end_ids),
                pad_token_id=min(sampling.end_ids),
            )[0, len(prefix) :]
            kept += sum(int(token) not in sampling.end_ids for token in drawn)
    return kept
