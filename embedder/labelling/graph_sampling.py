"""Sampling on a GPU: each step works in buffers of fixed size, so that a CUDA graph can repeat it.

A step has more than a thousand small kernels, which take longer to launch than to run. Where its tensors stay in
place, the launches are recorded once and repeated by one call, and the host never waits for the newest step. Prompts
are padded to few shapes, and a graph is kept for each. The keys of a prompt stand in the buffers once for all of its
samples. Ended samples are drawn on and left out of the result, because a graph cannot leave rows out.

What is drawn is what `sampling` draws on a CPU, but for rounding: in bfloat16 that depends on the shape of the batch.

B prompts, R rows (the prompts, and the last of them again to fill up), N samples of each, S steps, L columns of the
longest prompt, C = S x N columns of samples, K = L + C, G heads of keys, D width of a head, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

from embedder.labelling.sampling import SampledTokens, Sampling, SeededPrompt, draw, left_padded, uniform_numbers
from embedder.models.causal_lm import CausalLm
from embedder.models.memory import BatchLimit, free_bytes

LOG = logging.getLogger(__name__)

ROWS, COLUMNS, STEPS = 8, 64, 8
"""Batches are filled up to a multiple of these: few shapes, and keys whose number suits the attention kernels."""
MOST_GRAPHS = 32
"""Shapes that are kept; the one that was not used for longest gives way."""

Step = Callable[[], None]
KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Shape:
    """All that a graph is recorded for: the sizes of its buffers, and the numbers that its kernels are given."""

    rows: int
    length: int
    sampling: Sampling
    """Without ends, which stand in a buffer; `max_tokens` is S."""

    @property
    def columns(self) -> int:
        return self.length + self.sampling.max_tokens * self.sampling.num_samples


def padded_shape(lengths: Sequence[int], sampling: Sampling) -> Shape:
    """The shape in which prompts of these lengths are sampled."""
    # Fewer than `ROWS` prompts take the next power of two.
    rows = _multiple(len(lengths), min(ROWS, 1 << (len(lengths) - 1).bit_length()))
    steps = _multiple(sampling.max_tokens, STEPS)
    kernels = replace(sampling, max_tokens=steps, end_ids=frozenset(), stop_ids=frozenset())
    return Shape(rows, _multiple(max(lengths), COLUMNS), kernels)


def _multiple(number: int, of: int) -> int:
    """The least multiple that is not smaller."""
    return -(-number // of) * of


class FixedLayer(CacheLayerMixin):
    """Keys and values of one layer in buffers of fixed size; what is read is written into some of their columns."""

    def __init__(self, keys: Tensor, values: Tensor, columns: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.columns = keys, values, columns
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The buffers are given, so nothing is left to do."""

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *_: Any,  # noqa: ANN401
        **__: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self.columns, key_states)
        self.values.index_copy_(2, self.columns, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        return int(self.keys.shape[2])

    def get_max_length(self) -> int:
        return int(self.keys.shape[2])


class BufferedBatch:
    """A batch of one shape: its buffers, and the step that goes on from what they hold."""

    def __init__(self, lm: CausalLm, shape: Shape, layers: list[KeysValues], vocabulary: int) -> None:
        """`layers` are keys and values of each layer, (R, G, K, D)."""
        self.lm, self.shape, self.layers = lm, shape, layers
        device, rows, count, steps = lm.device, shape.rows, shape.sampling.num_samples, shape.sampling.max_tokens
        self.uniform_SRN = torch.zeros((steps, rows, count), dtype=torch.float64, device=device)
        self.tokens_SRN = torch.zeros((steps, rows, count), dtype=torch.long, device=device)
        self.is_end_V, self.is_stop_V = torch.zeros((2, vocabulary), dtype=torch.bool, device=device)
        self.step_1 = torch.zeros(1, dtype=torch.long, device=device)
        self.token_RN = torch.zeros((rows, count), dtype=torch.long, device=device)
        self.ended_RN = torch.zeros((rows, count), dtype=torch.bool, device=device)
        self.alive_1 = torch.zeros(1, dtype=torch.bool, device=device)
        self.position_R1 = torch.zeros((rows, 1), dtype=torch.long, device=device)
        # Added to the scores, because a mask of booleans is turned into such a one by every layer.
        self.mask_R1NK = torch.zeros((rows, 1, count, shape.columns), dtype=layers[0][0].dtype, device=device)
        # Column L + s x N + n holds what sample n has read at step s.
        own_C = torch.arange(steps * count, device=device)
        self.step_C = own_C // count
        self.is_own_NC = own_C % count == torch.arange(count, device=device).unsqueeze(1)
        self.first_columns_N = shape.length + torch.arange(count, device=device)
        self.columns_N = self.first_columns_N.clone()
        self.cache = Cache(layers=[FixedLayer(keys, values, self.columns_N) for keys, values in layers])

    def start(self, prompts: list[SeededPrompt], sampling: Sampling) -> None:
        """Read the prompts and draw the first token of each sample."""
        shape, device, count = self.shape, self.lm.device, len(prompts)
        for keys, values in self.layers:
            # Of masked columns nothing is seen, but what is no number would spoil the sum all the same.
            keys[:, :, shape.length :].zero_()
            values[:, :, shape.length :].zero_()
        logits_B1V, visible_BL = self._read(prompts)
        rows = torch.arange(shape.rows, device=device).clamp(max=count - 1)
        self.mask_R1NK[:, 0, :, : shape.length] = additive(visible_BL, self.mask_R1NK.dtype)[rows].unsqueeze(1)
        self.position_R1.copy_(visible_BL.sum(1, keepdim=True)[rows])
        self.ended_RN.copy_((torch.arange(shape.rows, device=device) >= count).unsqueeze(1).expand_as(self.ended_RN))
        uniform = torch.stack([uniform_numbers(seed, sampling) for _, seed in prompts], dim=1)
        self.uniform_SRN[: sampling.max_tokens, :count] = uniform.to(device)
        for is_one_V, ids in ((self.is_end_V, sampling.end_ids), (self.is_stop_V, sampling.stop_ids)):
            # A tokenizer may know tokens for which the model has no logit.
            known = torch.tensor([token for token in sorted(ids) if token < len(is_one_V)], dtype=torch.long)
            is_one_V.zero_()[known.to(device)] = True
        self.step_1.zero_()
        self._draw(logits_B1V[rows].expand(-1, shape.sampling.num_samples, -1))

    def _read(self, prompts: list[SeededPrompt]) -> tuple[Tensor, Tensor]:
        """Write the prompts into the buffers; returns the logits after each and which columns hold its tokens."""
        length, device = self.shape.length, self.lm.device
        ids_BL, visible_BL, position_BL = left_padded([prefix for prefix, _ in prompts], length, device)
        # Padding sees itself, because a row that sees nothing has no numbers to go on with.
        causal_LL = torch.ones((length, length), dtype=torch.bool, device=device).tril()
        seen_BLL = causal_LL & visible_BL.unsqueeze(1) | torch.eye(length, dtype=torch.bool, device=device)
        columns_L, rows = torch.arange(length, device=device), len(prompts)
        out = self.lm.model(
            input_ids=ids_BL,
            attention_mask=additive(seen_BLL, self.mask_R1NK.dtype).unsqueeze(1),
            position_ids=position_BL,
            past_key_values=Cache(
                layers=[FixedLayer(k[:rows, :, :length], v[:rows, :, :length], columns_L) for k, v in self.layers]
            ),
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits, visible_BL

    def advance(self) -> None:
        """Read the tokens drawn last and draw the next ones; Python decides nothing here, so a graph can repeat it."""
        count = self.shape.sampling.num_samples
        self.columns_N.copy_(self.first_columns_N + count * self.step_1)
        seen_NC = self.is_own_NC & (self.step_C <= self.step_1)
        self.mask_R1NK[..., self.shape.length :] = additive(seen_NC, self.mask_R1NK.dtype)
        out = self.lm.model(
            input_ids=self.token_RN,
            attention_mask=self.mask_R1NK,
            position_ids=(self.position_R1 + self.step_1).expand(-1, count),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.step_1.add_(1)
        self._draw(out.logits)

    def _draw(self, logits_RNV: Tensor) -> None:
        """Draw the tokens of this step and note which samples they end."""
        uniform_RN = self.uniform_SRN.index_select(0, self.step_1).squeeze(0)
        # Not turned to float32 first: the likeliest are the same, and are found in half the bytes.
        token_RN = draw(logits_RNV.flatten(0, 1), uniform_RN.flatten(), self.shape.sampling).view_as(self.token_RN)
        # An end token is left out of the output and a stop token is kept, so one is looked for before and one after.
        ended_RN = self.ended_RN | self.is_end_V[token_RN]
        self.tokens_SRN.index_copy_(0, self.step_1, token_RN.masked_fill(ended_RN, -1).unsqueeze(0))
        self.ended_RN.copy_(ended_RN | self.is_stop_V[token_RN])
        self.alive_1.copy_((~self.ended_RN).any().unsqueeze(0))
        self.token_RN.copy_(token_RN)


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key is seen and minus infinity elsewhere."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, float("-inf"))


class EndWatch:
    """Tells the host that all samples have ended, one step late.

    So the GPU has a step to work on while the host waits for the one before, and one step at most is drawn in vain.
    """

    def __init__(self, device: torch.device, steps: int) -> None:
        on_gpu = device.type == "cuda"
        # Pinned, because a copy into other memory waits for the GPU.
        self._alive = torch.ones(steps, dtype=torch.bool, pin_memory=on_gpu)
        self._events = [torch.cuda.Event(blocking=True) for _ in range(steps)] if on_gpu else []
        self.steps = 0
        """Steps begun so far."""

    def note(self, alive_1: Tensor) -> None:
        """Take over from the step begun last whether samples go on after it."""
        self._alive[self.steps : self.steps + 1].copy_(alive_1, non_blocking=True)
        if self._events:
            self._events[self.steps].record()
        self.steps += 1

    def had_ended(self) -> bool:
        """Tell whether no sample went on after the last step but one; the last one may be running still."""
        if self.steps < 2:
            return False
        if self._events:
            self._events[self.steps - 2].synchronize()
        return not bool(self._alive[self.steps - 2])


class GraphSampler:
    """Samples with one LLM on one GPU, and keeps buffers and graphs from batch to batch.

    All shapes share the buffers of keys, which grow to the largest; graphs hold addresses, so then they are recorded
    anew.
    """

    def __init__(self, lm: CausalLm, recorder: Callable[[], Callable[[Step], Step]]) -> None:
        """`recorder()` is what turns steps into ones that repeat them: by graphs on a GPU, which share their memory."""
        self.lm, self.recorder = lm, recorder
        self.limit = BatchLimit("sampling")
        self._one_token, self._vocabulary = read_one_token(lm)
        self._buffers: list[KeysValues] = []
        self._room = 0
        """Columns of keys that the buffers hold, of all rows together."""
        self._batches: dict[Shape, tuple[BufferedBatch, Step]] = {}
        self._record = recorder()

    def size(self, prompts: list[SeededPrompt], sampling: Sampling) -> int:
        """Columns of keys that a batch takes."""
        shape = padded_shape([len(prefix) for prefix, _ in prompts], sampling)
        return shape.rows * shape.columns

    @torch.inference_mode()
    def decode(self, prompts: list[SeededPrompt], sampling: Sampling) -> list[SampledTokens]:
        """Samples of prompts, each with its seed."""
        try:
            return self._decode(prompts, sampling)
        except RuntimeError:
            # Where memory was short, the buffers are the first to give way.
            self.release()
            raise

    def _decode(self, prompts: list[SeededPrompt], sampling: Sampling) -> list[SampledTokens]:
        batch, advance = self._batch(padded_shape([len(prefix) for prefix, _ in prompts], sampling))
        watch = EndWatch(self.lm.device, sampling.max_tokens)
        batch.start(prompts, sampling)
        watch.note(batch.alive_1)
        while watch.steps < sampling.max_tokens and not watch.had_ended():
            advance()
            watch.note(batch.alive_1)
        drawn: list[SampledTokens] = batch.tokens_SRN[: watch.steps, : len(prompts)].permute(1, 2, 0).tolist()
        return [[[token for token in sample if token >= 0] for sample in samples] for samples in drawn]

    def _batch(self, shape: Shape) -> tuple[BufferedBatch, Step]:
        """The batch of a shape and its repeated step, made unless they are kept."""
        if shape in self._batches:
            self._batches[shape] = self._batches.pop(shape)  # to the end of those kept
            return self._batches[shape]
        if len(self._batches) >= MOST_GRAPHS:
            del self._batches[next(iter(self._batches))]
        batch = BufferedBatch(self.lm, shape, self._layers(shape), self._vocabulary)
        self._batches[shape] = batch, self._record(batch.advance)
        return self._batches[shape]

    def _layers(self, shape: Shape) -> list[KeysValues]:
        """Keys and values of each layer in a shape, as views of the buffers."""
        needed = shape.rows * shape.columns
        if needed > self._room:
            self.release()
            self._buffers = [
                (keys.new_zeros(needed * keys.numel()), values.new_zeros(needed * values.numel()))
                for keys, values in self._one_token
            ]
            self._room = needed

        def view(buffer: Tensor, one: Tensor) -> Tensor:
            return buffer[: needed * one.numel()].view(shape.rows, one.shape[1], shape.columns, one.shape[3])

        return [
            (view(buffers[0], ones[0]), view(buffers[1], ones[1]))
            for buffers, ones in zip(self._buffers, self._one_token, strict=True)
        ]

    def release(self) -> None:
        """Give up buffers and graphs; they are made again when they are needed."""
        self._batches.clear()
        self._buffers, self._room = [], 0
        # A new one, because torch takes no more graphs into memory that the last one has left.
        self._record = self.recorder()

    def make_room(self) -> None:
        """Give them up where they leave less of the GPU's memory than they take, because scoring needs room too."""
        held = sum(buffer.nbytes for layer in self._buffers for buffer in layer)
        if held > free_bytes(self.lm.device):
            self.release()
            torch.cuda.empty_cache()


@torch.inference_mode()
def read_one_token(lm: CausalLm) -> tuple[list[KeysValues], int]:
    """Keys and values of one token in each layer, (1, G, 1, D), and the number of logits."""
    cache = DynamicCache()
    ids = torch.zeros((1, 1), dtype=torch.long, device=lm.device)
    out = lm.model(input_ids=ids, past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers], int(out.logits.shape[-1])


def graph_sampler(lm: CausalLm) -> GraphSampler | None:
    """A sampler by CUDA graphs; None where the LLM is on a CPU or on several GPUs, which no graph spans."""
    devices = {parameter.device for parameter in lm.model.parameters()}
    if lm.device.type != "cuda" or len(devices) > 1 or lm.model.tp_size is not None:
        return None
    return GraphSampler(lm, lambda: partial(record_cuda_graph, torch.cuda.graph_pool_handle()))


def record_cuda_graph(pool: Any, step: Step) -> Step:  # noqa: ANN401  (torch gives the type no public name)
    """The step as one launch of a CUDA graph, whose tensors in between lie in the pool that all graphs share.

    Graphs may share it because none runs beside another, and all that outlives a step lies in buffers made before.
    """
    step()  # once as it is, because kernels are loaded and workspaces made in a first run
    if (reason := why_it_waits(step)) is not None:
        LOG.warning("sampling runs without a CUDA graph, which is slower: the LLM waits for the GPU (%s)", reason)
        return step
    graph = torch.cuda.CUDAGraph()
    # Calls of other threads are no part of the recording and must not spoil it.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        step()
    return graph.replay


def why_it_waits(step: Step) -> str | None:
    """What makes the host wait for the GPU in a step, as in some mixtures of experts; None: nothing does."""
    # Asked before a recording, because one that fails leaves torch's memory of graphs in disorder.
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return None
