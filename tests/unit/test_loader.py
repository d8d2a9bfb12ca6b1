"""Models that cannot be loaded rightly are refused in one line, by the check before any load too; code never runs."""

from __future__ import annotations

import builtins
import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    LongT5Config,
    LongT5Model,
    PreTrainedTokenizerFast,
    XLNetConfig,
    XLNetModel,
)

from embedder.config.run import EncoderConfig, LlmConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.errors import EmbedderError, ModelError
from embedder.models.causal_lm import check_llm, load_lm
from embedder.models.encoder import check_encoder, encode_prompted, load_encoder
from embedder.models.encoder_export import export_encoder
from embedder.models.locate import check_runnable, count_parameters, locate_model
from embedder.training.cross_encoder import check_cross_encoder, load_cross_encoder
from tests.unit.tiny_folders import (
    BERT_SPECIAL,
    bert_folder,
    byte_level,
    chat_llm_folder,
    llama_folder,
    save_folder,
    wrapped,
)

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 438007537\n"
WEIGHTS = "model.safetensors"


def encoder_config(folder, **settings):
    return EncoderConfig(**{"model": str(folder), "pooling": "mean", "max_tokens": 64, "batch_tokens": 512, **settings})


def llm_config(folder):
    return LlmConfig(model=str(folder), max_prefix_tokens=200, batch_tokens=1024)


CHECKS = {
    "encoder": lambda folder: check_encoder(encoder_config(folder)),
    "cross-encoder": lambda folder: check_cross_encoder(str(folder), 64),
    "llm": lambda folder: check_llm(llm_config(folder)),
}
LOADS = {
    "encoder": lambda folder: load_encoder(encoder_config(folder), "cpu"),
    "cross-encoder": lambda folder: load_cross_encoder(str(folder), 64, 512, "cpu"),
    "llm": lambda folder: load_lm(llm_config(folder), folder.parent / "cache", "cpu"),
}


@pytest.fixture(scope="module")
def models_of_kind(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    bert = bert_folder(root / "bert", initializer_range=0.4)
    return {"encoder": bert, "cross-encoder": bert, "llm": chat_llm_folder(root / "llm")}


@pytest.fixture(params=LOADS)
def kind(request):
    return request.param


@pytest.fixture
def folder(models_of_kind, kind, tmp_path):
    """A model of the kind that a test may spoil."""
    return shutil.copytree(models_of_kind[kind], tmp_path / "model")


def refusal(function, *arguments):
    """The one line with which the project refuses."""
    with pytest.raises(EmbedderError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    return str(caught.value)


def refused(kind, folder, pattern, *, by_check=True):
    """Loading is refused, and so is the check that reads no weights."""
    for function in (CHECKS[kind], LOADS[kind]) if by_check else (LOADS[kind],):
        line = refusal(function, folder)
        assert re.search(pattern, line), line


def change(folder, name, **fields):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def renamed(prefix):
    def spoil(folder):
        weights = load_file(folder / WEIGHTS)
        save_file({f"{prefix}{name}": value for name, value in weights.items()}, folder / WEIGHTS, {"format": "pt"})

    return spoil


def sharded(folder):
    """The weights in two shards with their index."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in shards.items():
        save_file({name: weights[name] for name in own}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, own in shards.items() for name in own}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def without_a_shard(folder):
    sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def with_a_shard_elsewhere(folder):
    sharded(folder)
    index = json.loads((folder / f"{WEIGHTS}.index.json").read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../outside.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def half(name):
    def spoil(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return spoil


def written(name, content):
    def spoil(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def changed(name, **fields):
    return lambda folder: change(folder, name, **fields)


def with_one_tensor_less(folder):
    weights = load_file(folder / WEIGHTS)
    weights.pop(next(name for name in sorted(weights) if ".1." in name))
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


SPOILED = {
    "case 20: weights of a compiled module": (renamed("_orig_mod."), "'_orig_mod.'.*out of the names"),
    "weights of DataParallel": (renamed("module."), "'module.'.*out of the names"),
    "weights of another library": (renamed("encoder.deep."), "lacks weights"),
    "one tensor less": (with_one_tensor_less, r"lacks weights, such as .*\.1\."),
    "fewer layers by the configuration": (changed("config.json", num_hidden_layers=1), "config.json does not count"),
    "more layers by the configuration": (changed("config.json", num_hidden_layers=3), "lacks weights, such as .*2"),
    "a billion layers": (changed("config.json", num_hidden_layers=10**9), "says 1000000000 layers"),
    "another width": (changed("config.json", hidden_size=64), r"has the shape \[.*32.*\], and by config.json"),
    "case 21: weights as LFS pointer": (written(WEIGHTS, POINTER), r"Git LFS pointer.*git lfs pull"),
    "tokenizer as LFS pointer": (written("tokenizer.json", POINTER), r"Git LFS pointer.*git lfs pull"),
    "configuration as LFS pointer": (written("config.json", POINTER), r"Git LFS pointer.*git lfs pull"),
    "half a file": (half(WEIGHTS), "is cut off"),
    "an empty file": (written(WEIGHTS, b""), "is cut off or no safetensors file"),
    "a huge header": (written(WEIGHTS, (2**62).to_bytes(8, "little") + b"{}"), "would take 4,611,686"),
    "a negative header": (written(WEIGHTS, b"\xff" * 40), "is cut off or no safetensors file"),
    "a header of garbage": (written(WEIGHTS, (8).to_bytes(8, "little") + b"\xff\xfe{]}[{\x00"), "not JSON"),
    "a header that is a list": (written(WEIGHTS, (2).to_bytes(8, "little") + b"[]"), "a JSON list"),
    "a tensor of no shape": (written(WEIGHTS, (10).to_bytes(8, "little") + b'{"a": [] }'), "tensor 'a' has no valid"),
    "a missing shard": (without_a_shard, "1 of 2 shards of the weights are missing, such as model-00002"),
    "a shard elsewhere": (with_a_shard_elsewhere, "no file of this folder"),
    "a list for a configuration": (written("config.json", "[]"), "a JSON list, not an object"),
    "half a configuration": (half("config.json"), "config.json: not JSON"),
    "a deep configuration": (written("config.json", "[" * 200_000), "config.json: not JSON"),
    "no text at all": (written("config.json", b"\xff\xfe\x00"), "config.json: not JSON"),
    "an unknown architecture": (changed("config.json", model_type="nosuch"), "nosuch"),
    "no architecture": (written("config.json", "{}"), "cannot be loaded|model_type"),
    "sizes that are no numbers": (changed("config.json", hidden_size=float("nan")), "cannot be loaded"),
    "sizes below zero": (changed("config.json", hidden_size=-32), "cannot be loaded"),
    "sizes as words": (changed("config.json", num_hidden_layers="two"), "cannot be loaded"),
    "half a tokenizer": (half("tokenizer.json"), "cannot be loaded"),
    "an empty tokenizer": (written("tokenizer.json", b""), "cannot be loaded"),
    "settings of the tokenizer as list": (written("tokenizer_config.json", "[]"), "a JSON list, not an object"),
    "an adapter beside the weights": (
        written("adapter_config.json", '{"base_model_name_or_path": "owner/base"}'),
        "an adapter of 'owner/base'.*merge_and_unload",
    ),
    "kernels of a repository": (changed("config.json", attn_implementation="owner/kernel"), "code of its own"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_loader_refuses_a_spoiled_folder_in_one_line_before_and_at_the_load(kind, folder, name):
    """Cases 20-encoder-without-its-weights and 21-lfs-pointer, and what is like them."""
    spoil, pattern = SPOILED[name]
    spoil(folder)
    refused(kind, folder, pattern)


def test_loader_refuses_heads_that_do_not_divide_the_width(kind, folder):
    change(folder, "config.json", num_attention_heads=5, num_key_value_heads=5)
    refused(kind, folder, "cannot be loaded|has the shape")


def test_loader_reads_weights_in_shards(kind, folder, models_of_kind):
    sharded(folder)
    CHECKS[kind](folder)
    LOADS[kind](folder)
    assert count_parameters(folder) == count_parameters(models_of_kind[kind])


def test_count_parameters_refuses_an_lfs_pointer(folder):
    """Case 21-lfs-pointer: what a dry run counts."""
    written(WEIGHTS, POINTER)(folder)
    assert "git lfs pull" in refusal(count_parameters, folder)


def test_loader_refuses_an_adapter_without_its_base_and_names_it(kind, folder):
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    written("adapter_config.json", '{"base_model_name_or_path": "owner/base"}')(folder)
    refused(kind, folder, "an adapter of 'owner/base'.*merge_and_unload")


QUANTISED = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False},
    "bitsandbytes": {"load_in_4bit": True},
    "compressed-tensors": {"quant_method": "compressed-tensors", "config_groups": {}},
    "torchao": {"quant_method": "torchao"},
    "hqq": {"quant_method": "hqq"},
    "nosuch": {"quant_method": "nosuch"},
}


@pytest.mark.parametrize("method", QUANTISED)
def test_loader_refuses_quantised_weights_without_their_library(kind, folder, method):
    """Case 25-quantised-llm."""
    change(folder, "config.json", quantization_config=QUANTISED[method])
    refused(kind, folder, f"quantised by '?{method}.*(needs the package|not known here).*full precision")


@pytest.mark.parametrize("method", ["eetq", "fbgemm_fp8", "vptq"])
def test_check_runnable_refuses_weights_that_only_a_gpu_multiplies(tiny_llama_folder, tmp_path, method):
    folder = shutil.copytree(tiny_llama_folder, tmp_path / "model")
    change(folder, "config.json", quantization_config={"quant_method": method})
    with pytest.raises(ModelError, match=f"quantised by {method}, which computes on GPUs alone; set gpus_per_actor"):
        check_runnable(folder, 0)
    check_runnable(folder, 0.5)


def in_8_bits(folder: Path) -> dict[str, torch.Tensor]:
    """Turn the layers of a Llama folder into FP8 with a scale each; returns the weights as they then are."""
    stored, whole = load_file(folder / WEIGHTS), {}
    for name, value in list(stored.items()):
        whole[name] = value
        if "_proj" in name:
            scale = value.abs().max() / 448
            stored[name] = (value / scale).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale.reshape(1, 1)
            whole[name] = stored[name].float() * scale
    save_file(stored, folder / WEIGHTS, {"format": "pt"})
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    change(folder, "config.json", quantization_config=settings)
    return whole


def test_load_lm_an_fp8_folder_is_the_llm_of_its_rounded_weights(tiny_llama_folder, tmp_path):
    folder, plain = (shutil.copytree(tiny_llama_folder, tmp_path / name) for name in ("fp8", "plain"))
    save_file(in_8_bits(folder), plain / WEIGHTS, {"format": "pt"})
    check_llm(llm_config(folder))
    lm, same = (load_lm(llm_config(each), tmp_path / "cache", "cpu").model for each in (folder, plain))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        # Expanded to bfloat16, which rounds each weight once more.
        apart = (lm(input_ids=ids).logits.float() - same(input_ids=ids).logits).abs().max()
        assert apart < 0.1 * same(input_ids=ids).logits.std()


def test_loader_refuses_quantised_weights_of_an_encoder_whatever_is_installed(models_of_kind, tmp_path):
    folder = shutil.copytree(models_of_kind["encoder"], tmp_path / "model")
    change(folder, "config.json", quantization_config={"quant_method": "fp8"})
    refused("encoder", folder, "full precision alone")


def test_loader_refuses_a_tokenizer_with_more_tokens_than_the_model_has_embeddings(kind, folder):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens(["<surplus>"])
    tokenizer.save_pretrained(folder)
    # The tiny tokenizers know fewer tokens than the models, which is allowed.
    CHECKS[kind](folder)
    rows = len(tokenizer) - 1
    weights = load_file(folder / WEIGHTS)
    for name, value in weights.items():
        if value.shape[0] == 600:
            weights[name] = value[:rows].clone()
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    change(folder, "config.json", vocab_size=rows)
    refused(kind, folder, f"'<surplus>' the id {rows}, but the model has embeddings for {rows} ids")


@pytest.mark.parametrize("key", ["image_token", "additional_special_tokens"])
def test_load_encoder_takes_a_placeholder_for_pictures_beyond_the_embeddings_as_text(tmp_path, key):
    """The small Gemma 3 and EmbeddingGemma have one; other special tokens may be in use, and are refused."""
    special = {"image_token": "<picture>"} if key == "image_token" else ["<picture>"]
    names = {**BERT_SPECIAL, "extra_special_tokens": special}
    tokenizer = wrapped(byte_level([*BERT_SPECIAL.values()]), "[CLS] $A [SEP]", ["[CLS]", "[SEP]"], **names)
    rows = len(tokenizer) - 1
    assert tokenizer.convert_tokens_to_ids("<picture>") == rows
    folder = bert_folder(tmp_path / "bert", tokenizer, vocab_size=rows)
    if key != "image_token":
        refused("encoder", folder, f"'<picture>' the id {rows}")
        return
    check_encoder(encoder_config(folder))
    encoder = load_encoder(encoder_config(folder), "cpu")
    texts = ["a <picture> of a fox", "a of a fox"]
    assert max(map(max, encoder.tokenize(texts))) < rows
    first, second = encode_prompted(encoder, texts)
    assert np.abs(first - second).max() > 1e-4


def test_loader_refuses_a_tokenizer_that_knows_no_word(kind, folder):
    empty = Tokenizer(models.WordLevel({"[PAD]": 0, "[END]": 1}, unk_token="[PAD]"))
    empty.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=empty, pad_token="[PAD]", eos_token="[END]").save_pretrained(folder)
    nothing = Tokenizer(models.BPE())
    PreTrainedTokenizerFast(tokenizer_object=nothing, eos_token="[END]", pad_token="[END]").save_pretrained(folder)
    refused(kind, folder, "makes no tokens of 'a'|cannot be loaded")


def test_loader_refuses_a_classifier_of_three_labels_as_cross_encoder(models_of_kind, tmp_path):
    torch.manual_seed(0)
    config = BertConfig.from_pretrained(models_of_kind["encoder"], num_labels=3)
    folder = shutil.copytree(models_of_kind["encoder"], tmp_path / "model")
    BertForSequenceClassification(config).save_pretrained(folder)
    refused("cross-encoder", folder, r"classifier.* has the shape \[3.*one label")


def test_load_encoder_passes_over_a_pooler_that_is_not_there(models_of_kind, tmp_path):
    folder = shutil.copytree(models_of_kind["encoder"], tmp_path / "model")
    weights = {name: value for name, value in load_file(folder / WEIGHTS).items() if "pooler" not in name}
    assert len(weights) < len(load_file(folder / WEIGHTS))
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    whole, less = (load_encoder(encoder_config(path), "cpu") for path in (models_of_kind["encoder"], folder))
    assert (encode_prompted(whole, ["a fox"]) == encode_prompted(less, ["a fox"])).all()


def test_load_encoder_refuses_weights_that_are_no_numbers(models_of_kind, tmp_path):
    folder = shutil.copytree(models_of_kind["encoder"], tmp_path / "model")
    weights = load_file(folder / WEIGHTS)
    save_file({name: value * float("nan") for name, value in weights.items()}, folder / WEIGHTS, {"format": "pt"})
    refused("encoder", folder, "not finite", by_check=False)


CODE = "from pathlib import Path\nPath({mark!r}).write_text('ran')\nclass C: pass\n"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_loader_never_runs_code_of_a_folder_whatever_is_typed(kind, folder, name, tmp_path, monkeypatch):
    mark = tmp_path / "ran"
    for module in ("modeling_own", "configuration_own", "tokenization_own"):
        (folder / f"{module}.py").write_text(CODE.format(mark=str(mark)))
    own = {
        "config.json": {
            "model_type": "own",
            "auto_map": {
                "AutoConfig": "configuration_own.C",
                **dict.fromkeys(
                    ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"), "modeling_own.C"
                ),
            },
        },
        "tokenizer_config.json": {
            "tokenizer_class": "OwnTokenizer",
            "auto_map": {"AutoTokenizer": ["tokenization_own.C", None]},
        },
    }
    change(folder, name, **own[name])
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    try:
        LOADS[kind](folder)
    except ModelError as error:
        assert "code of its own" in str(error) or name == "tokenizer_config.json"
        assert "\n" not in str(error)
    else:
        assert name == "tokenizer_config.json"
    assert not mark.exists()


def test_loader_never_runs_code_beside_a_gguf_file(tmp_path, monkeypatch):
    import gguf

    folder, mark = tmp_path / "llm", tmp_path / "ran"
    folder.mkdir()
    writer = gguf.GGUFWriter(str(folder / "model.gguf"), "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    maps = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.C", "AutoTokenizer": ["own.C", None]}
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps({"model_type": "own", "tokenizer_class": "Own", "auto_map": maps}))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    refused("llm", folder, "cannot be loaded|code of its own", by_check=False)
    assert not mark.exists()


def test_load_encoder_takes_an_older_sentence_transformers_folder(tmp_path):
    """Case 26-old-sentence-transformers-folder: the transformer lies in 0_Transformer."""
    folder = tmp_path / "st"
    bert_folder(folder / "0_Transformer")
    (folder / "1_Pooling").mkdir()
    kinds = [("Transformer", "0_Transformer"), ("Pooling", "1_Pooling")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    check_encoder(encoder_config(folder))
    found = encode_prompted(load_encoder(encoder_config(folder), "cpu"), ["a fox"])
    inner = encode_prompted(load_encoder(encoder_config(folder / "0_Transformer"), "cpu"), ["a fox"])
    assert (found == inner).all() and locate_model(str(folder)) == folder / "0_Transformer"
    assert count_parameters(locate_model(str(folder))) > 0
    for function in (check_encoder, partial(load_encoder, device="cpu")):
        assert "was made with 'mean'" in refusal(function, encoder_config(folder, pooling="cls"))


@pytest.mark.parametrize("path", ["../elsewhere", "/etc"])
def test_locate_model_stays_in_a_sentence_transformers_folder(tmp_path, path):
    folder = bert_folder(tmp_path / "st")
    (folder / "modules.json").write_text(json.dumps([{"path": path, "type": "x.Transformer"}]))
    assert "leads out of the folder" in refusal(locate_model, str(folder))


def decoder_folder(folder):
    tokenizer = wrapped(
        byte_level(["<s>", "</s>", "<pad>"]),
        "<s> $A",
        ["<s>"],
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    return llama_folder(folder, tokenizer)


def test_encoder_refuses_a_pooling_that_cannot_see_the_text(tmp_path):
    """Case 28-cls-on-a-causal-model."""
    folder = decoder_folder(tmp_path / "decoder")
    for function in (check_encoder, lambda config: load_encoder(config, "cpu")):
        line = refusal(function, encoder_config(folder, pooling="cls"))
        assert "pooling is 'cls'" in line and "take 'last' or 'mean'" in line
    for pooling in ("mean", "last"):
        check_encoder(encoder_config(folder, pooling=pooling))
        load_encoder(encoder_config(folder, pooling=pooling), "cpu")


def test_encoder_takes_a_model_without_a_limit_of_positions(tmp_path):
    """Case 35-positions-minus-one: XLNet's configuration says -1."""
    torch.manual_seed(0)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "sep_token": "<sep>", "cls_token": "<cls>"}
    tokenizer = wrapped(byte_level([*names.values()]), "$A <sep> <cls>", ["<sep>", "<cls>"], **names)
    shape = XLNetConfig(vocab_size=600, d_model=32, n_layer=2, n_head=4, d_inner=64)
    folder = save_folder(XLNetModel(shape), tmp_path / "xlnet", tokenizer)
    check_encoder(encoder_config(folder))
    vectors = encode_prompted(load_encoder(encoder_config(folder), "cpu"), ["The quick brown fox", "Paris"])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_encoder_refuses_an_encoder_decoder_whose_encoder_is_not_taken(tmp_path):
    torch.manual_seed(0)
    shape = LongT5Config(vocab_size=600, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, pad_token_id=0)
    tokenizer = wrapped(byte_level(["<pad>", "</s>"]), "$A </s>", ["</s>"], pad_token="<pad>", eos_token="</s>")
    folder = save_folder(LongT5Model(shape), tmp_path / "longt5", tokenizer)
    refused("encoder", folder, "longt5 model with encoder and decoder.*name an encoder such as a BERT or a T5")


SIZES = {
    "vocab_size": 600,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
    "pad_token_id": 0,
}
SPECIAL_IDS = {"bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
GROUPED = {"num_key_value_heads": 2}
RELATIVE = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
FAMILIES = {
    "deberta-v2": {**RELATIVE, "type_vocab_size": 0},
    "modernbert": {"local_attention": 8, **SPECIAL_IDS},
    "nomic_bert": {},
    "electra": {},
    "albert": {"embedding_size": 16},
    "longformer": {"attention_window": [8, 8]},
    "gemma3_text": {"use_bidirectional_attention": True, "sliding_window": 8, "head_dim": 8, **GROUPED},
    "mistral": {"sliding_window": 8, **GROUPED},
    "qwen3": {"head_dim": 8, **GROUPED},
    "eurobert": GROUPED,
}
TEXTS = ["The quick brown fox", "Paris", "a list holds items in order; " * 9, "é 日本"]


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_families_alone_in_a_batch_and_through_sentence_transformers(tmp_path, family):
    """Case 51-encoder-families."""
    torch.manual_seed(3)
    special = [*BERT_SPECIAL.values()]
    names = {**BERT_SPECIAL, "bos_token": "[CLS]", "eos_token": "[SEP]"}
    tokenizer = wrapped(byte_level(special), "[CLS] $A [SEP]", ["[CLS]", "[SEP]"], **names)
    model = AutoModel.from_config(CONFIG_MAPPING[family](**{**SIZES, **FAMILIES[family]}))
    folder = save_folder(model, tmp_path / family, tokenizer)
    pooling = "last" if family in ("mistral", "qwen3") else "mean"
    config = encoder_config(folder, pooling=pooling, max_tokens=120, batch_tokens=4096)
    check_encoder(config)
    encoder = load_encoder(config, "cpu")
    vectors = encode_prompted(encoder, TEXTS)
    for i, text in enumerate(TEXTS):
        np.testing.assert_allclose(encode_prompted(encoder, [text])[0], vectors[i], atol=1e-5)
    export_encoder(encoder, tmp_path / "exported", BUILTIN_TASKS)
    other = SentenceTransformer(str(tmp_path / "exported"), device="cpu").encode(TEXTS, batch_size=8)
    np.testing.assert_allclose(other, vectors, atol=1e-5)


def stored_as(dtype):
    def spoil(folder):
        weights = {name: value.to(dtype) for name, value in load_file(folder / WEIGHTS).items()}
        save_file(weights, folder / WEIGHTS, {"format": "pt"})

    return spoil


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_loader_refuses_weights_that_are_no_numbers_without_their_scales(kind, folder, dtype):
    stored_as(dtype)(folder)
    refused(kind, folder, "is stored as (I8|I64|BOOL|F8_E4M3), and config.json names no quantisation")


def test_loader_refuses_shapes_that_the_bytes_of_a_tensor_do_not_hold(kind, folder):
    def enlarge(header):
        header[min(header)]["shape"] = [2**40, 2**40]

    change_header(folder, enlarge)
    refused(kind, folder, "has no valid entry in its header")


def test_loader_refuses_tensors_that_share_bytes(kind, folder):
    def share(header):
        name = min(header)
        twin = next(other for other in header if other != name and header[other]["shape"] == header[name]["shape"])
        header[name]["data_offsets"] = header[twin]["data_offsets"]

    change_header(folder, share)
    refused(kind, folder, "do not follow those of the tensor before")


def change_header(folder, spoil):
    content = (folder / WEIGHTS).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    spoil(header)
    changed = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(changed).to_bytes(8, "little") + changed + content[start:])


@pytest.mark.parametrize("layers", [0, -2])
def test_loader_refuses_a_model_without_layers(kind, folder, layers):
    change(folder, "config.json", num_hidden_layers=layers)
    refused(kind, folder, f"config.json says {layers} layers")


@pytest.mark.parametrize("content", ["[]", "{", '{"eos_token_id": "x"}', '{"eos_token_id": [4, null]}'])
def test_loader_refuses_an_llm_whose_end_tokens_cannot_be_read(models_of_kind, tmp_path, content):
    folder = shutil.copytree(models_of_kind["llm"], tmp_path / "model")
    (folder / "generation_config.json").write_text(content)
    refused("llm", folder, "generation_config.json")


def test_loader_refuses_an_llm_that_predicts_no_numbers(models_of_kind, tmp_path):
    folder = shutil.copytree(models_of_kind["llm"], tmp_path / "model")
    weights = load_file(folder / WEIGHTS)
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    refused("llm", folder, "its predictions are not finite", by_check=False)
