"""GPUs that a stage asks for: missing ones are refused or waited for, unused ones are told, CPUs come with them."""

from __future__ import annotations

import pytest

from embedder.config.run import RunConfig
from embedder.errors import DeviceError
from embedder.run.gpu_shares import GpuShare, check_gpus, gpu_cpus, refuse_without_driver, stage_shares

RUN = {
    "paths": {"work": "/work", "cache": "/cache"},
    "encoder": {"model": "/encoder", "pooling": "mean", "gpus_per_actor": 1, "num_actors": 3},
    "llm": {"model": "/llm"},
    "evaluate": {"llm_queries": 0},
    "train": {"steps": 1, "batch_size": 4},
}
CPUS, FOUR = {"CPU": 8.0}, {"CPU": 32.0, "GPU": 4.0}


def shares(stage, **sections):
    return {share.setting: share.gpus for share in stage_shares(stage, RunConfig.model_validate({**RUN, **sections}))}


def test_stage_shares_are_those_of_the_processes_that_hold_a_model():
    assert shares("prepare") == {}
    assert shares("mine") == shares("index") == shares("evaluate") == {"encoder.gpus_per_actor": 1.0}
    building = shares("index", index={"gpus_per_shard": 2})
    assert building == {"encoder.gpus_per_actor": 1.0, "index.gpus_per_shard": 2.0}
    asking = shares(
        "evaluate", evaluate={"llm_queries": 5, "gpus_per_actor": 2}, llm={"model": "/llm", "device_map": "auto"}
    )
    assert asking == {"encoder.gpus_per_actor": 1.0, "evaluate.gpus_per_actor": 2.0}
    assert shares("questions") == {"encoder.gpus_per_actor": 1.0, "label.gpus_per_actor": 0.0}
    assert shares("train") == {"train.gpus_per_worker": 0.0}
    assert shares("serve", serve={"gpus_per_replica": 0.5}) == {"serve.gpus_per_replica": 0.5}


def test_stage_shares_of_label_are_those_of_its_teacher():
    assert shares("label", label={"gpus_per_actor": 0.5}) == {"label.gpus_per_actor": 0.5}
    assert shares("label", label={"teacher": "imported"}) == shares("label", label={"recompute": True}) == {}
    ranker = {"label": {"teacher": "reranker"}, "reranker": {"model": "/ranker", "gpus_per_worker": 1}}
    assert shares("label", **ranker) == {"label.gpus_per_actor": 0.0, "reranker.gpus_per_worker": 1.0}


def test_check_gpus_refuses_what_no_machine_has_where_none_can_join():
    share = GpuShare("label.gpus_per_actor", 1.0, 2, "label.num_actors")
    with pytest.raises(DeviceError, match=r"label\.gpus_per_actor is 1, but no machine here has 1 GPU that Ray sees"):
        check_gpus([share], [CPUS], can_grow=False)
    with pytest.raises(DeviceError, match=r"is 8, but no machine here has 8 GPUs"):
        check_gpus([GpuShare("label.gpus_per_actor", 8.0)], [FOUR, FOUR], can_grow=False)
    (line,) = check_gpus([share], [CPUS], can_grow=True)
    assert line.endswith("has 1 GPU that Ray sees; waiting for one to join the cluster")


def test_check_gpus_says_which_setting_gives_a_gpu_to_what_has_none():
    encoding, asking = GpuShare("encoder.gpus_per_actor", 0.0, 2, "encoder.num_actors"), GpuShare("evaluate.x", 0.0)
    (line,) = check_gpus([encoding, asking], [CPUS, {"CPU": 8.0, "GPU": 1.0}], can_grow=True)
    assert line == (
        "1 GPU here, but processes without one compute on CPUs; "
        "to give them one, set encoder.gpus_per_actor or evaluate.x"
    )
    assert check_gpus([encoding, asking], [CPUS], can_grow=False) == []
    assert check_gpus([], [FOUR], can_grow=False) == []


def test_check_gpus_says_how_many_stay_unused():
    def lines(gpus, processes):
        share = GpuShare("label.gpus_per_actor", gpus, processes, "label.num_actors")
        return check_gpus([share], [FOUR], can_grow=True)

    assert lines(1.0, 3) == ["1 of 4 GPUs stay unused; a greater label.num_actors uses them"]
    assert lines(0.5, 2) == ["3 of 4 GPUs stay unused; a greater label.num_actors uses them"]
    assert lines(1.0, 4) == lines(0.5, 8) == lines(2.0, 9) == []


@pytest.mark.parametrize(
    ("gpus", "nodes", "expected"),
    [
        (1.0, [{"CPU": 6.0, "GPU": 1.0}], 4),
        (1.0, [{"CPU": 4.0, "GPU": 1.0}], 3),
        (0.5, [{"CPU": 6.0, "GPU": 1.0}], 2),
        (1.0, [{"CPU": 4.0, "GPU": 4.0}], 1),
        (1.0, [FOUR, {"CPU": 9.0, "GPU": 4.0}, {"CPU": 2.0}], 2),
        (2.0, [FOUR], 4),
        (1.0, [CPUS], 1),
    ],
)
def test_gpu_cpus_are_the_share_of_the_machine_that_has_fewest(gpus, nodes, expected):
    assert gpu_cpus(gpus, nodes) == expected


def test_gpus_without_a_driver_are_refused_before_ray_is_started(monkeypatch):
    share = GpuShare("serve.gpus_per_replica", 1.0)
    monkeypatch.setattr("embedder.run.gpu_shares.DRIVER", "libno-such-driver.so.1")
    refuse_without_driver([])
    refuse_without_driver([GpuShare("serve.gpus_per_replica", 0.0)])
    with pytest.raises(DeviceError, match=r"serve\.gpus_per_replica is 1, but no machine here has 1 GPU"):
        refuse_without_driver([share])
    # A library that is there: how many GPUs it finds is for Ray to say.
    monkeypatch.setattr("embedder.run.gpu_shares.DRIVER", None)
    refuse_without_driver([share])
