"""Other rewards from stored log-likelihoods: which follow from them, which are refused, what keeps them apart."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from embedder.config.run import RunConfig
from embedder.data.records import QUERY, write_table
from embedder.errors import ConfigError, LabelError
from embedder.hashing import content_id
from ray_jobs.cluster import metrics
from ray_jobs.cluster.tables import llm_ledger
from ray_jobs.labelling.provenance import label_pools, label_provenance, read_provenance, write_provenance
from ray_jobs.labelling.teachers import RecomputingTeacher
from tests.unit.labelled_rows import FIRST, SECOND, THIRD, row


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """Progress without a cluster that would show it."""

    @contextmanager
    def track_progress(work, total):
        yield SimpleNamespace(advance=lambda count: None)

    monkeypatch.setattr(metrics, "track_progress", track_progress)


@pytest.fixture
def config(tmp_path, tiny_encoder):
    """A run with two labelled groups of qa, by rank, whose outputs have 4, 1 and 2 tokens."""
    config = RunConfig(paths={"work": tmp_path / "work"}, encoder=tiny_encoder)
    write_queries(config, "now")
    label(config, [[THIRD, SECOND], [FIRST, SECOND, THIRD]], output_tokens=[4, 1, 2])
    return config


def write_queries(config, *answers):
    """Prepared training queries, too long to be worked examples."""
    empty = {**dict.fromkeys(QUERY.names), "task": "qa", "dataset": "nq", "query": "when " * 99}
    rows = [{**empty, "query_id": f"q{i}", "answers": [answer]} for i, answer in enumerate(answers)]
    write_table(rows, QUERY, config.paths.queries / "train" / "nq.parquet")


def label(config, groups, **columns):
    """Commit labels with these log-likelihoods, and what they depend on."""
    provenance = label_provenance(config, label_pools(config))
    known = {"label_fingerprint": provenance.fingerprint, "truncated": 0, **columns}
    rows = [row(scores, [1] * len(scores), row_id=content_id(i), **known) for i, scores in enumerate(groups)]
    llm_ledger(config.paths).commit(rows)
    write_provenance(config.paths, provenance)


def with_rewards(config, recompute=True, **settings):
    """The same run with other rewards of qa."""
    raw = config.model_dump(exclude={"tasks"})
    raw["label"]["recompute"] = recompute
    return RunConfig.model_validate({**raw, "tasks": {"qa": settings}})


def recomputed(config, **settings):
    """The rewards of the groups after a recomputation, the larger group first."""
    teacher = RecomputingTeacher(with_rewards(config, **settings))
    teacher.check()
    teacher.run()
    rows = llm_ledger(config.paths).read().to_pylist()
    assert {one["reward"] for one in rows} == {settings["reward"]}
    return sorted((one["rewards"] for one in rows), key=len, reverse=True)


def test_recompute_makes_every_kind_of_reward_by_means_and_by_sums_and_goes_back(config):
    before = llm_ledger(config.paths).read().to_pylist()
    assert recomputed(config, reward="gain", reward_margin=0) == [[2.5, 1.5, 0.0], [0.0, 1.5]]
    assert recomputed(config, reward="gain", reward_margin=1) == [[2.5, 1.5, 0.5], [0.5, 1.5]]
    assert recomputed(config, reward="gain", reward_margin=0, reward_sum="sum") == [[10.0, 6.0, 0.0], [0.0, 6.0]]
    # Sums without a candidate are -12, -1 and -4; with them -2, -6 and -12: third, then second, third, third.
    assert recomputed(config, reward="rank", reward_sum="sum") == [[1.0, 0.0, 0.0], [0.0, 0.0]]
    assert recomputed(config, reward="rank_then_gain", reward_sum="sum") == [[1.0, 0.0, 0.0], [0.0, 1.0]]
    assert read_provenance(config.paths).rewards["qa"] == "rank_then_gain margin 0.1 sum"
    recomputed(config, reward="rank")
    assert llm_ledger(config.paths).read().to_pylist() == before


def test_recompute_is_asked_for_where_a_setting_of_the_reward_changed(config):
    for settings in ({"reward": "gain"}, {"reward_sum": "sum"}):
        with pytest.raises(ConfigError, match=r"add --set label\.recompute=true"):
            RecomputingTeacher(with_rewards(config, recompute=False, **settings)).check()
    RecomputingTeacher(with_rewards(config, recompute=False, reward_margin=0.7, reward_temperature=0.3)).check()


def test_recompute_of_labels_without_numbers_of_tokens_refuses_sums_and_makes_the_rest(config):
    label(config, [[THIRD, SECOND], [FIRST, SECOND, THIRD]], output_tokens=None)
    with pytest.raises(LabelError, match=r"tasks \['qa'\] were labelled before .* label them into another folder"):
        RecomputingTeacher(with_rewards(config, reward_sum="sum")).check()
    assert recomputed(config, reward="gain", reward_margin=0) == [[2.5, 1.5, 0.0], [0.0, 1.5]]


def test_recompute_of_labels_without_other_outputs_refuses_ranks(config):
    alone = with_rewards(config, recompute=False, reward="likelihood")
    label(alone, [[(-1.0,), (-2.0,)], [(-1.0,), (-2.0,), (-3.0,)]], base=(-2.5,), reward="likelihood", outputs=["now"])
    for reward in ("rank", "rank_then_gain"):
        with pytest.raises(LabelError, match="have no other outputs to rank among; label them into another folder"):
            RecomputingTeacher(with_rewards(config, reward=reward)).check()


def test_provenance_depends_on_the_outputs_of_the_corpus_only_where_they_are_rivals(config):
    def fingerprint(answer, **settings):
        write_queries(config, "now", answer)
        other = config.model_copy(update={"label": config.label.model_copy(update=settings)})
        return label_provenance(other, label_pools(other)).fingerprint

    assert fingerprint("one") == fingerprint("two") == read_provenance(config.paths).fingerprint
    rivals = {fingerprint(answer, corpus_outputs=1) for answer in ("one", "two")}
    assert len(rivals | {fingerprint("one")}) == 3
