"""The GPU benchmark at toy size on a CPU: every part runs and keeps its figures; one that fails leaves the others."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_inputs
from benchmarks.gpu_bench import kernel_kind
from benchmarks.gpu_part import FUNCTIONS, function_of, open_bench
from embedder.demo.build import build

KEYS = {
    "ceilings": {"bfloat16_tflops", "TF32_tflops", "float32_tflops", "copy_tb_s"},
    "right": set(),
    "scoring-7b": {"label_7b_pairs_s", "label_7b_share"},
    "scoring-8b": {"label_8b_pairs_s", "label_8b_share"},
    "sampling": {"sampling_tokens_s"},
    "encoding": {"encode_texts_s", "encode_vs_sentence_transformers"},
    "training": {"train_samples_s", "train_vs_sentence_transformers"},
    "mining": {"mining_tflops"},
    "memory": {"labelling_s", "encoding_s", "training_s"},
    "way": {"stages_s", "served_s"},
}
"""What each part finds."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tiny_llama_folder, tiny_encoder_folder) -> Path:
    """The benchmark's inputs, of a few rows of the demo's text."""
    folder = tmp_path_factory.mktemp("gpu")
    build(folder / "demo")
    source, data = folder / "demo" / "qa" / "python-docs", folder / "data" / "qa" / "nq"
    data.mkdir(parents=True)
    for file in source.glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if file.stem == "corpus":
            rows = [row | {"text": row["text"][:80]} for row in rows]
        (data / file.name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = ["--data", folder / "data", "--out", folder / "inputs", "--llm", tiny_llama_folder]
    options += ["--encoder", tiny_encoder_folder, "--groups", 3, "--passages", 30]
    assert gpu_inputs.main(list(map(str, options))) == 0
    return folder / "inputs"


@pytest.fixture
def uncompiled():
    """Nothing is compiled on a CPU; the stance of other tests comes back."""
    with torch.compiler.set_stance("force_eager"):
        yield


def test_gpu_parts_find_every_figure_to_quote():
    assert set(gpu.PARTS) == set(FUNCTIONS) == set(KEYS)
    assert set(gpu.KEYS) <= set().union(*KEYS.values())


@pytest.mark.slow
@pytest.mark.parametrize("part", [name for name in KEYS if name != "way"])
def test_gpu_part_runs_at_toy_size(capsys, tmp_path, inputs, uncompiled, part):
    bench = open_bench(inputs, tmp_path / part, toy=True)
    function_of(part)(bench)
    kept = json.loads((tmp_path / part / "figures.json").read_text(encoding="utf-8"))
    assert kept.keys() >= KEYS[part] and not bench.figures.wrong
    assert "WRONG" not in capsys.readouterr().out


@pytest.mark.slow
def test_gpu_benchmark_goes_on_after_a_part_that_fails(capfd, tmp_path, inputs, monkeypatch):
    start = gpu.start

    def start_or_break(name: str, *given: Path, toy: bool) -> gpu.Turn:
        with monkeypatch.context() as changed:
            if name == "right":
                changed.setattr(gpu, "PART_COMMAND", [sys.executable, "-c", "raise ValueError('broken')"])
            return start(name, *given, toy=toy)

    monkeypatch.setattr(gpu, "start", start_or_break)
    file = tmp_path / "gpu.json"
    options = ["--inputs", str(inputs), "--json", str(file), "--part", "right", "--part", "ceilings"]
    assert gpu.main([*options, "--commit", "abc"]) == 1
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["commit"] == "abc" and found["device"].startswith("none") and "torch" in found["versions"]
    assert "ValueError: broken" in found["parts"]["right"]["error"]
    assert found["parts"]["ceilings"]["error"] is None and found["parts"]["ceilings"]["bfloat16_tflops"] > 0
    shown = capfd.readouterr().out
    assert shown.index("FAILED") < shown.index("products in bfloat16")


def test_gpu_benchmark_ends_a_part_that_stands_still(capsys, tmp_path):
    words = [sys.executable, "-c", "import time; print('  a row', flush=True); time.sleep(99)"]
    with (tmp_path / "table.txt").open("wb") as table:
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=table, start_new_session=True)
    (tmp_path / "figures.json").write_text('{"row": 1}', encoding="utf-8")
    turn = gpu.Turn("right", tmp_path, process)
    began = time.monotonic()
    assert turn.take(1.0) == "ended after 1 s" and time.monotonic() - began < 10
    assert "a row" in capsys.readouterr().out and turn.found == {"row": 1}
    found: gpu.Found = {}
    gpu.enter(found, "right", {"device": "card", "mining_tflops": 2.0, "own": 3}, 1.0, None)
    assert found["device"] == "card" and found["mining_tflops"] == 2.0 and found["parts"]["right"]["own"] == 3


def test_gpu_benchmark_without_inputs_says_how_to_make_them(capsys, tmp_path):
    assert gpu.main(["--inputs", str(tmp_path)]) == 1
    assert "benchmarks.gpu_inputs" in capsys.readouterr().out
    assert gpu_inputs.main(["--data", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "no data" in capsys.readouterr().out


def test_gpu_kernels_are_told_apart_by_name():
    names = {
        "fmha_cutlassF_bf16_aligned_64x128_rf_sm80": "attention",
        "triton_tem_fused_flex_attention_0": "attention",
        "nvjet_tst_256x128_64x4_2x1_v_bz_coopA_TNT": "products",
        "Memcpy HtoD (Pinned -> Device)": "copies",
        "triton_poi_fused_mul_silu_2": "element-wise and sums",
    }
    assert {name: kernel_kind(name) for name in names} == names


@pytest.mark.slow
@pytest.mark.ray
def test_gpu_part_goes_the_whole_way_under_ray(tmp_path, inputs, uncompiled):
    bench = open_bench(inputs, tmp_path / "way", toy=True, seconds=400)
    function_of("way")(bench)
    assert bench.figures.values.keys() >= KEYS["way"] and bench.figures.values["evaluate_s"] > 0
