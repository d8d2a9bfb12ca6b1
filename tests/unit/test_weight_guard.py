"""The guard: weights between the base's and the trained ones, which of them harms no task, and what is exported."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from embedder.config.run import EncoderConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.config.train import TrainConfig
from embedder.errors import NotFiniteError
from embedder.models.encoder import encode, load_encoder
from embedder.training.checkpoint import last_step, read_checkpoint
from embedder.training.learners import EncoderLearner, load_learner
from embedder.training.loop import train
from embedder.training.objective import Objective
from embedder.training.row_files import write_training_rows
from embedder.training.token_batches import TokenLimits
from embedder.training.validation import HeldOut
from embedder.training.weight_guard import between, choose
from tests.unit.bare_network import BareNetwork
from tests.unit.test_not_finite import labelled, make_training
from tests.unit.tiny_folders import bert_folder

TEXTS = ["where is the fox?", "the dog is near 3", "a list"]
VALIDATED = {"validation": {"queries": 1, "every": 4}, "learning_rate": 3e-4, "save_every": 2}
LORA = {"lora": {"rank": 4, "target_modules": ["query", "dense"]}, "learning_rate": 1e-2}


def entry(share, **tasks):
    return {"share": share, "tasks": tasks, "mean": sum(tasks.values()) / len(tasks)}


BASE = entry(0.0, qa=0.5, tool=0.5)


@pytest.mark.parametrize(
    ("others", "tolerance", "share"),
    [
        ([entry(0.5, qa=0.6, tool=0.5), entry(1.0, qa=0.9, tool=0.5)], 0.0, 1.0),
        ([entry(0.5, qa=0.6, tool=0.5), entry(1.0, qa=0.9, tool=0.49)], 0.0, 0.5),
        ([entry(0.5, qa=0.6, tool=0.5), entry(1.0, qa=0.9, tool=0.49)], 0.02, 1.0),
        ([entry(0.5, qa=0.6, tool=0.4), entry(1.0, qa=0.4, tool=0.9)], 0.0, 0.0),
        ([entry(0.5, qa=0.7, tool=0.5), entry(1.0, qa=0.6, tool=0.5)], 0.0, 0.5),
        ([entry(0.5, qa=0.6, tool=0.5), entry(1.0, qa=0.6, tool=0.5)], 0.0, 0.5),
        ([entry(1.0, qa=0.5, tool=0.5)], 0.0, 0.0),
        ([entry(1.0, qa=0.6, tool=0.5 - 1e-12)], 0.0, 1.0),
        ([], 0.0, 0.0),
    ],
)
def test_choose_takes_the_best_mean_of_those_that_harm_no_task(others, tolerance, share):
    assert choose([BASE, *others], tolerance)["share"] == share


def test_between_meets_both_ends_exactly_and_goes_straight():
    torch.manual_seed(0)
    base, trained = ({"weight": torch.randn(50)} for _ in range(2))
    for share, end in ((0.0, base), (1.0, trained)):
        assert torch.equal(between(base, trained, share, False)["weight"], end["weight"])
    quarter = base["weight"] + 0.25 * (trained["weight"] - base["weight"])
    assert torch.allclose(between(base, trained, 0.25, False)["weight"], quarter)


def test_between_scales_the_product_of_low_rank_factors():
    torch.manual_seed(0)
    base = {"lora_A": torch.randn(2, 5), "lora_B": torch.zeros(4, 2)}
    trained = {"lora_A": torch.randn(2, 5), "lora_B": torch.randn(4, 2)}
    for share in (0.0, 0.25, 1.0):
        made = between(base, trained, share, True)
        assert torch.allclose(made["lora_B"] @ made["lora_A"], share * trained["lora_B"] @ trained["lora_A"])


def test_guard_without_a_validation_split_is_refused():
    with pytest.raises(ValueError, match="guard needs validation, on whose split it measures"):
        TrainConfig(steps=1, guard={})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return bert_folder(tmp_path_factory.mktemp("bert") / "b", initializer_range=0.4)


def make_config(model):
    return EncoderConfig(model=str(model), pooling="mean", max_tokens=40, batch_tokens=512)


def about_the_dog(count):
    """Groups of qa that prefer what the base does not."""
    return [{**row, "relevance": [0, 1, 0, 0], "rewards": [0.0, 3.0, 1.0, 2.0]} for row in labelled(count)]


def as_the_base_ranks(model, rows):
    """The rows, as those of the task `tool` whose known positive is what the base ranks first."""
    encoder = load_encoder(make_config(model), "cpu")
    made = []
    for row in rows:
        query = encode(encoder, [row["query"]], BUILTIN_TASKS["tool"], "query")
        passages = encode(encoder, row["candidate_texts"], BUILTIN_TASKS["tool"], "passage")
        best = int((passages @ query[0]).argmax())
        made.append({**row, "task": "tool", "relevance": [int(i == best) for i in range(len(passages))]})
    return made


def make_guarded(folder, model, **settings):
    """A training of qa that betters qa, and makes the ranking of tool, which the base has right, worse."""
    job = make_training(folder, model, about_the_dog(8), steps=8, **{**VALIDATED, "guard": {}, **settings})
    held_out = [*about_the_dog(6), *as_the_base_ranks(model, labelled(12))]
    write_training_rows(held_out, BUILTIN_TASKS, job.held_out, {})
    return job


def outcome_of(job):
    return json.loads(job.outcome.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, model):
    job = make_guarded(tmp_path_factory.mktemp("guarded"), model)
    train(job, lambda metrics: None)
    return job


def test_guard_exports_a_smaller_share_where_the_whole_way_harms_a_task(guarded):
    outcome = outcome_of(guarded)
    found = outcome["guard"]
    base, whole = found["measured"][0], found["measured"][-1]
    assert [one["share"] for one in found["measured"]] == [0, 0.25, 0.5, 0.75, 1]
    assert base["tasks"] == outcome["validation"]["history"][0]["tasks"]
    assert whole["tasks"] == outcome["validation"]["history"][outcome["validation"]["best"]]["tasks"]
    assert whole["mean"] > base["mean"] and whole["tasks"]["tool"] < base["tasks"]["tool"]
    assert 0 < found["share"] < 1
    assert found["share"] == choose(found["measured"], 0.0)["share"]


def test_guard_exports_what_it_measured(guarded):
    """The exported folder, ranked by the same measure, has the values that the guard chose it for."""
    found = outcome_of(guarded)["guard"]
    chosen = next(one for one in found["measured"] if one["share"] == found["share"])
    encoder = load_encoder(make_config(guarded.exported), "cpu")
    learner = EncoderLearner(encoder, Objective(BUILTIN_TASKS, 0.1), cutoff=10)
    assert HeldOut(guarded.held_out, learner).measure(BareNetwork(encoder), TokenLimits(512, None)) == pytest.approx(
        chosen["tasks"]
    )


def test_guard_exports_weights_between_the_bases_and_the_best(guarded, model):
    share = outcome_of(guarded)["guard"]["share"]
    best = read_checkpoint(guarded.checkpoints, last_step(guarded.checkpoints)).best
    base, exported = load_file(model / "model.safetensors"), load_file(guarded.exported / "model.safetensors")
    moved = 0
    for name, end in best.items():
        key = name.removeprefix("backbone.")
        assert torch.allclose(exported[key], torch.lerp(base[key], end, share), atol=1e-6)
        moved += not torch.equal(base[key], end)
    assert moved > 5


@pytest.mark.parametrize("kind", [{}, LORA], ids=["weights", "lora"])
def test_guard_that_finds_harm_everywhere_exports_the_base_bit_by_bit(tmp_path, model, kind):
    job = make_guarded(tmp_path, model, guard={"shares": [1.0]}, **kind)
    train(job, lambda metrics: None)
    found = outcome_of(job)
    assert found["validation"]["best"] > 0 and found["guard"]["share"] == 0
    base, exported = (load_encoder(make_config(folder), "cpu") for folder in (model, job.exported))
    for side in ("query", "passage"):
        vectors = [encode(encoder, TEXTS, BUILTIN_TASKS["qa"], side) for encoder in (base, exported)]
        assert vectors[0].tobytes() == vectors[1].tobytes()


def test_guard_has_one_choice_however_often_its_training_was_stopped(tmp_path, model, guarded, monkeypatch):
    """Once in the middle, and once while it measured."""

    class StoppedError(Exception):
        pass

    def stop_at(step):
        def report(metrics):
            if metrics.step == step:
                raise StoppedError

        return report

    job = make_guarded(tmp_path, model)
    with pytest.raises(StoppedError):
        train(job, stop_at(4))
    with monkeypatch.context() as patch, pytest.raises(NotFiniteError):
        patch.setattr("embedder.training.loop.choose", lambda *given: (_ for _ in ()).throw(NotFiniteError("stop")))
        train(job, lambda metrics: None)
    assert not job.exported.exists()
    train(job, lambda metrics: None)
    assert outcome_of(job) == outcome_of(guarded)
    weights = [load_file(one.exported / "model.safetensors") for one in (job, guarded)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_validation_measures_a_network_without_dropout(tmp_path, model):
    job = make_guarded(tmp_path, model, dropout=0.5)
    learner = load_learner(job, "cpu")
    held_out, network = HeldOut(job.held_out, learner), BareNetwork(learner.network)
    once, again = (held_out.measure(network, TokenLimits(512, None)) for _ in range(2))
    assert once == again and learner.network.training
