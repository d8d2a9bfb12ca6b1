"""What labels depend on stands beside them, and so does what made them."""

from __future__ import annotations

import json

import pytest
import torch

from embedder.config.run import RunConfig
from embedder.errors import ConfigError
from embedder.labelling.server_backend import ServerIdentity
from embedder.models.device import device_kind
from ray_jobs.cluster.llm_server import check_server, note_server
from ray_jobs.labelling.provenance import (
    LabelProvenance,
    check_provenance,
    note_device,
    read_devices,
    read_provenance,
    write_provenance,
)

CPU, GPU = "cpu, float32", "cuda NVIDIA H100 80GB HBM3, bfloat16"


@pytest.fixture
def config(tmp_path, tiny_encoder):
    return RunConfig(paths={"work": tmp_path / "work"}, encoder=tiny_encoder)


def test_device_kind_names_device_and_number_format():
    assert device_kind(torch.device("cpu"), torch.float32) == CPU


def test_provenance_lists_every_kind_of_device_that_labelled(config):
    wanted = LabelProvenance("print", {"qa": "rank"})
    write_provenance(config.paths, wanted)
    assert read_devices(config.paths) == [] and read_provenance(config.paths).devices == ()
    for kind in (GPU, CPU, GPU):
        note_device(config.paths, kind)
    write_provenance(config.paths, wanted)
    assert read_provenance(config.paths).devices == (CPU, GPU)
    noted = json.loads((config.paths.labelled / "provenance.json").read_text(encoding="utf-8"))
    assert noted == {"fingerprint": "print", "rewards": {"qa": "rank"}, "devices": [CPU, GPU]}


def test_provenance_of_another_kind_of_device_is_the_same_labels(config):
    note_device(config.paths, GPU)
    write_provenance(config.paths, LabelProvenance("print", {"qa": "rank"}))
    check_provenance(config, LabelProvenance("print", {"qa": "rank"}))
    with pytest.raises(ConfigError, match="holds labels print, this run file would make other"):
        check_provenance(config, LabelProvenance("other", {"qa": "rank"}))


def test_provenance_of_labels_made_before_devices_were_noted_is_read(config):
    config.paths.labelled.mkdir(parents=True)
    old = {"fingerprint": "print", "rewards": {"qa": "rank"}}
    (config.paths.labelled / "provenance.json").write_text(json.dumps(old), encoding="utf-8")
    assert read_provenance(config.paths) == LabelProvenance("print", {"qa": "rank"})


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (ServerIdentity("sglang", "echo of token ids", [-1.0, -2.0]), "engine 'vllm' -> 'sglang'"),
        (ServerIdentity("vllm", "echo of token ids", [-1.5, -2.5]), r"differ by 0\.50 nats a token"),
        (ServerIdentity("vllm", "echo of token ids", [-1.0]), "differ by inf"),
        (ServerIdentity("vllm", "echo of texts", [-1.0, -2.0]), "form 'echo of token ids' -> 'echo of texts'"),
    ],
)
def test_server_labels_of_another_engine_or_llm_are_refused(config, found, told):
    known = ServerIdentity("vllm", "echo of token ids", [-1.0, -2.0])
    check_server(config.paths.labelled, found)
    note_server(config.paths.labelled, known)
    check_server(config.paths.labelled, ServerIdentity("vllm", "echo of token ids", [-1.04, -1.98]))
    with pytest.raises(ConfigError, match=told):
        check_server(config.paths.labelled, found)
    # The first one counts, so that labels do not wander from one to the next.
    note_server(config.paths.labelled, found)
    check_server(config.paths.labelled, known)
