"""What a machine must show before a stage works on it, with folders and stores that are not what they should be."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from embedder.config.load import load_run
from embedder.errors import ConfigError, StorageError
from embedder.run import preflight as module
from embedder.run.preflight import (
    Answer,
    Machine,
    ModelNeed,
    Questions,
    answer,
    local_lines,
    missed,
    model_needs,
    shared_folders,
    too_small,
)

NODE = Machine("node two")


def test_preflight_finds_nothing_where_all_is_shared_and_leaves_nothing(tmp_path: Path) -> None:
    questions = Questions.ask([tmp_path])
    assert answer(questions, NODE).lines == [] and missed(questions, NODE) == []
    questions.end()
    assert list(tmp_path.iterdir()) == []


def test_preflight_of_two_stages_in_one_folder_leaves_the_files_of_the_other(tmp_path: Path) -> None:
    first, second = Questions.ask([tmp_path]), Questions.ask([tmp_path])
    second.end()
    assert answer(first, NODE).lines == []


def test_preflight_tells_a_machine_that_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """As a node sees it on which another disk, or none, is mounted there."""
    shared = tmp_path / "shared"
    shared.mkdir()
    questions = Questions.ask([shared])
    shared.rename(tmp_path / "driver")
    shared.mkdir()
    (line,) = answer(questions, NODE).lines
    assert line.startswith(f"node two: its {shared} is another one than the driver's") and "mount one storage" in line
    (tmp_path / "node").mkdir()
    shared.rename(tmp_path / "node" / "shared")
    (tmp_path / "driver").rename(shared)
    (line,) = missed(questions, NODE)
    assert line.startswith(f"node two: what it writes to {shared} is not seen by the driver")


def test_preflight_tells_a_machine_that_reads_old_content(tmp_path: Path) -> None:
    questions = Questions.ask([tmp_path])
    (tmp_path / ".preflight" / questions.name("driver")).write_bytes(b"old")
    (line,) = answer(questions, NODE).lines
    assert line.startswith(f"node two: reads old content in {tmp_path}")


@pytest.mark.skipif(os.geteuid() != 0, reason="another user can be taken by root alone")
def test_preflight_tells_a_machine_that_may_not_write(tmp_path: Path) -> None:
    """In a process of another user, since root may write anywhere."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    questions = Questions.ask([tmp_path])
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.setuid(65534)
        os.write(write, "\n".join(answer(questions, NODE).lines).encode())
        os._exit(0)
    os.waitpid(child, 0)
    line = os.read(read, 10_000).decode()
    assert line.startswith("node two: ") and str(tmp_path) in line and "Permission denied" in line, line
    assert "\n" not in line


def test_preflight_refuses_a_store_that_ignores_conditions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedder.storage.folder_store import FolderStore

    def overwrite(store: FolderStore, name: str, content: bytes) -> bool:
        (tmp_path / ".preflight" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".preflight" / name).write_bytes(content)
        return True

    monkeypatch.setattr(FolderStore, "put_if_absent", overwrite)
    with pytest.raises(ConfigError, match="ignores the condition"):
        Questions.ask([tmp_path])


def test_preflight_refuses_a_driver_that_may_not_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="file"):
        Questions.ask([tmp_path / "file"])


def test_preflight_compares_versions_and_models(tmp_path: Path) -> None:
    questions = Questions.ask([tmp_path], [tmp_path / "encoder"])
    other = replace(questions, versions={**questions.versions, "torch": "2.0.0"})
    lines = answer(other, NODE).lines
    assert lines[0].startswith(f"node two: no {tmp_path / 'encoder'}, which the run reads; every")
    assert lines[1].startswith("node two: torch ") and "but the driver has 2.0.0" in lines[1] and len(lines) == 2


@pytest.mark.parametrize(
    ("gpus", "told", "words"),
    [
        (1, "echo '580.95.05, 81559'", None),
        (2, "echo '580.95.05, 81559'", "Ray counts 2 GPUs, but nvidia-smi knows 1"),
        (1, "echo '550.54.15, 81559'", "NVIDIA's driver is 550.54.15; torch needs 580 or later"),
        (1, "echo 'NVIDIA-SMI has failed'; exit 9", "nvidia-smi knows 0"),
        (0, "exit 9", None),
    ],
)
def test_preflight_looks_at_the_driver_of_a_machine_with_gpus(tmp_path: Path, monkeypatch, gpus, told, words) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{told}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    questions = Questions.ask([tmp_path])
    found = answer(questions, Machine("node two", gpus=gpus))
    assert [words in line for line in found.lines] == ([True] if words else []), found.lines
    assert found.gpu_memory == (81559 * 2**20 if gpus and "81559" in told else 0)


def test_preflight_without_nvidias_program_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRIVER", (str(tmp_path / "none"),))
    (line,) = answer(Questions.ask([tmp_path]), Machine("node two", gpus=1)).lines
    assert "nvidia-smi knows 0" in line and "driver 580 or later" in line


def test_preflight_tells_weights_that_no_machine_could_hold() -> None:
    small, large = Machine("small", memory=8e9), Machine("large", memory=20e9)
    card = Answer(Machine("card", gpus=1, memory=30e9), [], gpu_memory=24e9)
    llm = ModelNeed("llm.model", int(14e9), gpus=0)
    assert too_small([llm], [Answer(small, []), Answer(large, [])]) == []
    (line,) = too_small([llm], [Answer(small, [])])
    assert "llm.model: its weights are 14.0 GB" in line and "small, gives a process 8.0 GB of memory" in line
    on_card = ModelNeed("llm.model", int(28e9), gpus=1)
    (line,) = too_small([on_card], [card])
    assert "24.0 GB of GPU memory" in line
    assert too_small([replace(on_card, gpus=2)], [card]) == [], "divided over two"
    assert too_small([on_card], [Answer(small, [])]) == [], "machines with GPUs are yet to join"


def test_preflight_knows_the_weights_of_each_stage(run_of_models) -> None:
    config = run_of_models
    assert [need.setting for need in model_needs("label", config)] == ["llm.model"]
    (encoder,) = model_needs("mine", config)
    assert encoder.setting == "encoder.model" and encoder.bytes > 1000 and encoder.gpus == 0
    assert model_needs("prepare", config) == [] == model_needs("train", config)
    for absent in ("/nowhere/model", "s3://bucket/model"):
        other = config.model_copy(update={"encoder": config.encoder.model_copy(update={"model": absent})})
        assert model_needs("index", other) == []


def test_preflight_of_a_run_that_is_not_there_yet_asks_for_the_folder_above_it(run_of_models, tmp_path: Path) -> None:
    assert shared_folders(run_of_models) == [tmp_path]
    assert local_lines(run_of_models) == []
    assert not (tmp_path / "runs").exists() and not (tmp_path / ".preflight").exists()


@pytest.fixture
def run_of_models(tmp_path: Path, tiny_encoder_folder: Path, tiny_llama_folder: Path):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"paths: {{work: {tmp_path}/runs/first, cache: {tmp_path}/cache}}\n"
        f"encoder: {{model: {tiny_encoder_folder}, pooling: mean}}\nllm: {{model: {tiny_llama_folder}}}\n"
    )
    return load_run(path)
