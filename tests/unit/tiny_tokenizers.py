"""Tiny tokenizers of every kind that LLMs have, and the chat templates of real families, written in their form."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from tests.unit.tiny_folders import CHATML, TEXTS

CONTROLS = (
    *("<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|end|>"),
    *("<\N{FULLWIDTH VERTICAL LINE}User\N{FULLWIDTH VERTICAL LINE}>",),
    *("<\N{FULLWIDTH VERTICAL LINE}Assistant\N{FULLWIDTH VERTICAL LINE}>",),
)
THOUGHTS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Control tokens that are not marked special, as in Qwen 3."""
SAID = (*TEXTS, "Speaker 1: is it so? Speaker 2: It is.\n\nNo; never.\n", "Markets and marketing: 1234 foxes.", "an ox")
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
LLAMA3 = rf"{WORDS}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def _byte_level(pattern: str | None) -> Tokenizer:
    """A BPE of bytes, with the words of GPT-2 and SmolLM, or those of Llama 3 and Qwen, which hold line ends."""
    tokenizer = Tokenizer(models.BPE())
    splits: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if pattern:
        splits = [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SAID, trainer)
    return tokenizer


def _sentencepiece(scheme: str, controls_are_pieces: bool = False) -> Tokenizer:
    """A BPE as SentencePiece has it; `prepend` is the form of Llama 2's tokenizer, whose words are not divided."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *BYTES], show_progress=False)
    # As pieces of the vocabulary the control tokens are made of smaller ones, as in folders converted long ago.
    controls = [f"{each} " * 20 for each in ("<s>", "</s>")] if controls_are_pieces else []
    tokenizer.train_from_iterator([*SAID, *controls], trainer)
    if scheme == "prepend":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\N{LOWER ONE EIGHTH BLOCK}"), normalizers.Replace(" ", "\N{LOWER ONE EIGHTH BLOCK}")]
        )
        tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\N{LOWER ONE EIGHTH BLOCK}", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def _unigram(scheme: str, splits_spaces: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    metaspace = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    spaces = [pre_tokenizers.WhitespaceSplit(), metaspace]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(spaces) if splits_spaces else metaspace
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    # Control tokens are pieces of the model's own vocabulary, as in every SentencePiece model.
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False)
    alphabet = "".join(map(chr, range(33, 127))) + "\n"
    tokenizer.train_from_iterator([*SAID, *alphabet], trainer)
    return tokenizer


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*SAID, *map(chr, range(33, 127))], trainer)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "byte level, GPT-2": lambda: _byte_level(None),
    "byte level, Llama 3": lambda: _byte_level(LLAMA3),
    "SentencePiece, Llama 2": lambda: _sentencepiece("prepend"),
    "SentencePiece, first": lambda: _sentencepiece("first"),
    "SentencePiece, always": lambda: _sentencepiece("always"),
    "SentencePiece, Gemma": lambda: _sentencepiece("never"),
    "SentencePiece with control pieces": lambda: _sentencepiece("prepend", controls_are_pieces=True),
    "Unigram, first": lambda: _unigram("first"),
    "Unigram, always": lambda: _unigram("always"),
    "Unigram, T5": lambda: _unigram("always", splits_spaces=True),
    "WordPiece": _word_piece,
}


def tiny_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a kind, with the control tokens of all chat templates below."""
    tokenizer = TOKENIZERS[kind]()
    # Phi's control tokens take the white space behind them.
    taking = {"<|user|>", "<|assistant|>", "<|end|>"}
    tokenizer.add_special_tokens(
        [AddedToken(each, special=True, normalized=False, rstrip=each in taking) for each in CONTROLS]
    )
    tokenizer.add_tokens([AddedToken(each, special=False, normalized=False) for each in THOUGHTS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="[UNK]" if kind == "WordPiece" else "<unk>",
    )


TURNS = "{% for m in messages %}"
CHATS = {
    "ChatML": CHATML,
    "Qwen 3": CHATML.replace(
        "assistant\n",
        "assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
    ),
    "Llama 3": "{{ bos_token }}" + TURNS + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "Llama 2": TURNS + "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
    "Gemma": "{{ bos_token }}" + TURNS + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "Mistral": "{{ bos_token }}" + TURNS + "{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    "Phi": TURNS + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "DeepSeek": "{{ bos_token }}" + TURNS + "{% if m.role == 'user' %}<\N{FULLWIDTH VERTICAL LINE}User"
    "\N{FULLWIDTH VERTICAL LINE}>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<\N{FULLWIDTH VERTICAL LINE}Assistant\N{FULLWIDTH VERTICAL LINE}>{% endif %}",
}
"""Chat templates as the families' publishers write them, without what they do for tools."""
