"""The encoder: a transformer backbone, pooling and normalisation.

`encode` is the one path from texts to vectors for mining, indexing, evaluating and serving: the same instruction,
truncation, pooling and normalisation everywhere, so that an offline vector equals a served one.

B texts, L tokens of the longest, D width of the vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers.processors import Sequence, TemplateProcessing
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from embedder.config.cutting import PromptedText
from embedder.config.run import EncoderConfig
from embedder.config.tasks import Side, TaskSpec
from embedder.errors import ModelError
from embedder.models.loader import ENCODER, check_loadable, load_network, one_model_error, usable_positions
from embedder.models.locate import locate_model
from embedder.models.memory import BatchLimit, halving_on_memory_error
from embedder.models.st_folder import check_base_model
from embedder.models.transfer import pinned, upload

TokenRow = list[int]

SIGHT = ("The fox", "The fox sleeps below the old bridge.")
"""Two texts that begin alike: a token that sees nothing behind it has one state in both."""
SAME = 1e-6
"""Components of unit vectors that differ by less are equal."""
ALIGNED = 8
"""Rows on a GPU are filled up to a multiple of this: attention there copies a mask whose rows are of other lengths."""


@dataclass(frozen=True)
class PaddedRows:
    """The token rows of one forward pass, filled up to one length, in the memory of the host."""

    indices: list[int]
    """Where each row stands among all that are embedded."""
    ids_BL: Tensor
    mask_BL: Tensor
    query_B: Tensor | None = None
    """For a cross-encoder that tells them apart: how many tokens of each pair are of the query's segment."""

    def part(self, rows: list[int]) -> PaddedRows:
        """Some of the rows, which follow one another."""
        own = slice(rows[0], rows[-1] + 1)
        query_B = None if self.query_B is None else self.query_B[own]
        return PaddedRows(self.indices[own], self.ids_BL[own], self.mask_BL[own], query_B)


class RowReader(Protocol):
    """What reads padded rows on a device: the encoder, and the cross-encoder."""

    masks_keys: bool
    """The model is given a mask with one entry for each key, (B, 1, 1, L), which it hands on to attention."""
    memory: BatchLimit
    """What fits into memory where no gradient is kept, as far as it is known."""

    @property
    def max_tokens(self) -> int:
        """Tokens of a row at most."""

    def padded(self, rows: list[TokenRow], indices: list[int]) -> PaddedRows:
        """Rows side by side; for a GPU in memory that it copies from while the host goes on."""

    def embed(self, batch: PaddedRows) -> Tensor:
        """What one forward pass gives, in the order of its rows."""


class TextEncoder(nn.Module):
    """Token rows to unit vectors."""

    def __init__(self, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: EncoderConfig) -> None:
        super().__init__()
        self.backbone: PreTrainedModel = backbone
        self.tokenizer = tokenizer
        self.config = config
        self.in_bfloat16 = False
        """Matrix products are taken in bfloat16, with the weights left as they are."""
        self.masks_keys = False
        self.memory = BatchLimit("encoding", "padded tokens")

    @property
    def device(self) -> torch.device:
        return torch.device(self.backbone.device)

    @property
    def max_tokens(self) -> int:
        return self.config.max_tokens

    @property
    def dimension(self) -> int:
        return int(self.backbone.config.hidden_size)

    def tokenize(self, texts: Iterable[str | PromptedText]) -> list[TokenRow]:
        """Token ids of each text, special tokens included, cut to `max_tokens`."""
        return self.tokenize_and_tell(texts)[0]

    def tokenize_and_tell(self, texts: Iterable[str | PromptedText]) -> tuple[list[TokenRow], list[bool]]:
        """The same, and which texts were too long; a plain text carries its instruction and loses its end."""
        texts, longest = list(texts), self.config.max_tokens
        if not texts:
            return [], []
        whole = [str(text) for text in texts]
        # Masks and types would be two more lists of Python numbers for each text, and nobody reads them.
        unread = {"return_attention_mask": False, "return_token_type_ids": False}
        made = self.tokenizer(whole, truncation=True, max_length=longest, padding=False, **unread)
        rows = [list(ids) for ids in made["input_ids"]]
        # The library keeps what it cut off; where a tokenizer has no fast form, all texts are read a second time.
        if self.tokenizer.is_fast:
            is_cut = [bool(encoding.overflowing) for encoding in made.encodings]
        else:
            is_cut = [len(ids) > longest for ids in self.tokenizer(whole, truncation=False)["input_ids"]]
        for number, text in enumerate(texts):
            if is_cut[number] and isinstance(text, PromptedText) and text.keeps_end:
                rows[number] = self._without_beginning(text)
        return rows, is_cut

    def _without_beginning(self, text: PromptedText) -> TokenRow:
        """The instruction and the end of a text that is too long, with the special tokens of both ends."""
        alone, whole = (
            list(self.tokenizer(part, truncation=False)["input_ids"]) for part in (text.instruction, str(text))
        )
        # What the instruction alone and the whole begin with alike: special tokens of the beginning, and itself.
        kept = next((i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), len(alone))
        # At least half of the room is the text's, should an instruction be that long.
        kept = min(kept, self.config.max_tokens // 2)
        return whole[:kept] + whole[kept - self.config.max_tokens :]

    def forward(self, rows: list[TokenRow] | PaddedRows) -> Tensor:
        """Unit vectors (B, D) in the order of the rows: those of one forward pass, or some that are padded here.

        Rows are sorted by length and padded in batches of at most `batch_tokens`, which on CPU costs half the time
        of one padded batch; the result does not depend on it.
        """
        if isinstance(rows, PaddedRows):
            return self.embed(rows)
        batches = length_batches([len(row) for row in rows], self.config.batch_tokens)
        return embed_batches(self._embed_padded, rows, batches)

    def _embed_padded(self, rows: list[TokenRow]) -> Tensor:
        return self.embed(self.padded(rows, list(range(len(rows)))))

    def batches(self, rows: list[TokenRow]) -> Iterator[PaddedRows]:
        """The forward passes that `forward` makes of these rows, each filled up when it is asked for."""
        for indices in length_batches([len(row) for row in rows], self.config.batch_tokens):
            yield self.padded([rows[i] for i in indices], indices)

    def row_lengths(self, rows: list[TokenRow]) -> NDArray[np.int64]:
        """Tokens that each row takes where it is the longest of its pass."""
        length_B = np.array([len(row) for row in rows], dtype=np.int64)
        return aligned_lengths(length_B, self.max_tokens) if self.device.type == "cuda" else length_B

    def padded(self, rows: list[TokenRow], indices: list[int]) -> PaddedRows:
        length_B = np.array([len(row) for row in rows])
        mask_BL = np.arange(self.row_lengths(rows).max()) < length_B[:, None]
        # A tokenizer without a padding token gets id 0, which is as good as any because the mask hides it.
        ids_BL = np.full(mask_BL.shape, self.tokenizer.pad_token_id or 0, dtype=np.int64)
        ids_BL[mask_BL] = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(length_B.sum()))
        ids, mask = torch.from_numpy(ids_BL), torch.from_numpy(mask_BL.astype(np.int64))
        return PaddedRows(indices, pinned(ids, self.device), pinned(mask, self.device))

    def embed(self, batch: PaddedRows) -> Tensor:
        """Unit vectors (B, D) of one forward pass, in the order of its rows."""
        # Nothing here reads a result, so that a GPU is given its next work while it computes.
        ids_BL, mask_BL = upload(batch.ids_BL, self.device), upload(batch.mask_BL, self.device)
        given = key_mask(mask_BL) if self.masks_keys else mask_BL
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.in_bfloat16):
            state_BLD = self.backbone(input_ids=ids_BL, attention_mask=given).last_hidden_state
        return F.normalize(pool(state_BLD, mask_BL, self.config.pooling), dim=-1)


def aligned_lengths(length_B: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Tokens of rows on a GPU, of which the longest text of the batch has so many and no text has more than `most`."""
    # Not beyond that, because the model may have no position there.
    return np.maximum(length_B, np.minimum(-(-length_B // ALIGNED) * ALIGNED, most))


def key_mask(mask_BL: Tensor) -> Tensor:
    """The mask (B, L) with one entry for each key, (B, 1, 1, L)."""
    # Of the mask (B, L) transformers asks the GPU whether anything is masked, and waits for the answer.
    return mask_BL[:, None, None].bool()


def pool(state_BLD: Tensor, mask_BL: Tensor, pooling: str) -> Tensor:
    """One state a text, shape (B, D), in float32 whatever the states are in."""
    # A mean over hundreds of tokens and a norm lose their last digits in bfloat16.
    match pooling:
        case "cls":
            # Position 0 holds it because `complete_tokenizer` pads on the right; `last` counts on that too.
            return state_BLD[:, 0].float()
        case "mean":
            weight_BL1 = mask_BL.unsqueeze(-1).float()
            return (state_BLD.float() * weight_BL1).sum(1) / weight_BL1.sum(1).clamp(min=1e-9)
        case "last":
            last_B = mask_BL.sum(1) - 1
            return state_BLD[torch.arange(len(last_B), device=last_B.device), last_B].float()
        case _:
            raise ValueError(f"pooling is {pooling!r}; use cls, mean or last")


def length_batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices sorted by length, cut so that rows x longest row stays within `batch_tokens` (at least one row)."""
    # Stable, so that the same texts fall into the same batches on every platform.
    order = np.argsort(lengths, kind="stable")
    batch: list[int] = []
    for index in order.tolist():
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def embed_batches(
    embed: Callable[[list[TokenRow]], Tensor], rows: list[TokenRow], batches: Iterable[list[int]]
) -> Tensor:
    """Vectors (B, D) in the order of the rows, embedded batch by batch.

    The batches hold every index; of one that they hold several times the first vector is taken.
    """
    batches = list(batches)
    vectors = torch.cat([embed([rows[i] for i in batch]) for batch in batches])
    # `unique` sorts the indices and tells where each stands first, because one may stand in several batches.
    _, first = np.unique(np.concatenate(batches), return_index=True)
    return vectors[torch.from_numpy(first).to(vectors.device)]


def encode(encoder: TextEncoder, texts: Iterable[str], task: TaskSpec, side: Side) -> np.ndarray:
    """Unit vectors (len(texts), D), float32, of texts with the task's instruction of that side before them."""
    return encode_prompted(encoder, [task.prompted(side, text) for text in texts])


def encode_prompted(encoder: TextEncoder, texts: Iterable[str | PromptedText]) -> np.ndarray:
    """Unit vectors (len(texts), D) of texts that carry their instruction already: a served batch mixes tasks."""
    return encode_tokens(encoder, encoder.tokenize(texts))


def encode_tokens(encoder: TextEncoder, rows: list[TokenRow]) -> np.ndarray:
    """Unit vectors (len(rows), D) of token ids with instruction and special tokens: a server counts tokens first."""
    if not rows:
        return np.zeros((0, encoder.dimension), dtype=np.float32)
    return encode_batches(encoder, encoder.batches(rows))


def encode_batches(encoder: RowReader, batches: Iterable[PaddedRows]) -> np.ndarray:
    """Unit vectors (rows, D) or scores (rows) of some forward passes, in the order of their indices.

    A pass that does not fit into memory is halved, and so are later ones of its size.

    Raises:
        torch.OutOfMemoryError: a single row does not fit.
    """
    parts: list[Tensor] = []
    order: list[int] = []
    with torch.inference_mode():
        for batch in batches:
            parts += _embed_fitting(encoder, batch)
            order += batch.indices
        # Once, because each fetch waits until the GPU has nothing left to do.
        found = torch.cat(parts).cpu().numpy()
    vectors = np.empty_like(found)
    vectors[order] = found
    return vectors


def _embed_fitting(encoder: RowReader, batch: PaddedRows) -> list[Tensor]:
    """The vectors of one forward pass, in as few parts as fit into memory."""
    longest = batch.ids_BL.shape[1]
    return halving_on_memory_error(
        lambda rows: [encoder.embed(batch.part(rows))],
        list(range(len(batch.indices))),
        encoder.memory,
        lambda rows: len(rows) * longest,
    )


def load_encoder(config: EncoderConfig, device: torch.device | str, dropout: float = 0.0) -> TextEncoder:
    """Load an encoder in evaluation mode on a device.

    Raises:
        ConfigError: it pools in another way than `config` says, by the files of its folder.
        ModelError: the folder is missing or lacks something, or the vectors are the same whatever a text says.
    """
    check_base_model(config)
    folder = locate_model(config.model)
    shape, tokenizer = check_loadable(ENCODER, folder)
    complete_tokenizer(tokenizer, config.pooling)
    check_positions(shape, config)
    # In float32 whatever the file holds, because training and the comparison of exports need it.
    backbone = load_network(ENCODER, folder, shape)
    # A decoder would keep the keys and values of every layer for a next token that never comes.
    backbone.config.use_cache = False
    set_dropout(backbone, dropout)
    encoder = TextEncoder(backbone, tokenizer, config).eval()
    _check_sight(encoder)
    with one_model_error(folder):
        return encoder.to(device)


def check_encoder(config: EncoderConfig) -> None:
    """Refuse what `load_encoder` would refuse, as far as that is known without reading weights.

    Raises:
        ConfigError, ModelError: as there.
    """
    check_base_model(config)
    folder = locate_model(config.model)
    shape, tokenizer = check_loadable(ENCODER, folder)
    complete_tokenizer(tokenizer, config.pooling)
    check_positions(shape, config)
    # The first token of a decoder sees no other. Only the weights tell for sure, and this is hardly ever asked for.
    if config.pooling == "cls" and type(shape) not in AutoModelForMaskedLM._model_mapping:
        load_encoder(config, "cpu")


def _check_sight(encoder: TextEncoder) -> None:
    """Refuse an encoder that gives two texts with the same first word one vector, or numbers that are none.

    Raises:
        ModelError: it does.
    """
    folder = encoder.config.model
    with one_model_error(Path(folder)):
        first, second = encode_prompted(encoder, SIGHT)
    if not np.isfinite([first, second]).all():
        raise ModelError(f"encoder.model {folder}: its vectors are not finite: its weights are damaged; copy it again")
    if np.abs(first - second).max() < SAME:
        remedy = "mean" if encoder.config.pooling == "last" else "last' or 'mean"
        raise ModelError(
            f"encoder.pooling is {encoder.config.pooling!r}, by which {folder} gives different texts the same vector; "
            f"take '{remedy}'"
        )


def complete_tokenizer(tokenizer: PreTrainedTokenizerBase, pooling: str) -> None:
    """Give a tokenizer what embedding needs and a language model's lacks; the exported one keeps it.

    Padding on the right; a padding token; and for the pooling `last` an end token behind every text, cut or not, since
    the state of whatever word a text happens to end in says little of the text.

    Raises:
        ModelError: the end token is missing or cannot be added.
    """
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if pooling != "last" or tokenizer("a")["input_ids"][-1] in tokenizer.all_special_ids:
        return
    end = tokenizer.eos_token
    if end is None or not tokenizer.is_fast:
        raise ModelError(
            f"tokenizer {tokenizer.name_or_path}: pooling is 'last', but it ends no text with a special token and has "
            f"{'none' if end is None else 'no fast form'} to do so; take pooling 'mean'"
        )
    ending = TemplateProcessing(single=f"$A {end}", pair=f"$A $B {end}", special_tokens=[(end, tokenizer.eos_token_id)])
    backend = tokenizer.backend_tokenizer
    # After the tokenizer's own step, because that may add the token with which the model expects texts to begin.
    steps = [backend.post_processor, ending] if backend.post_processor else [ending]
    backend.post_processor = Sequence(steps)


def check_positions(shape: PreTrainedConfig, config: EncoderConfig) -> None:
    """Refuse texts longer than the model can tell positions apart.

    Raises:
        ModelError: `max_tokens` exceeds the positions.
    """
    usable = usable_positions(shape)
    if usable is not None and config.max_tokens > usable:
        raise ModelError(
            f"encoder.max_tokens is {config.max_tokens}, but {config.model} takes at most {usable} tokens; lower it"
        )


def set_dropout(backbone: nn.Module, rate: float) -> None:
    """Set every rate of dropout, whether a module of its own or a number that attention is called with."""
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        # Fused attention has no module for its dropout: it is called with a number that its layer keeps.
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, rate)
