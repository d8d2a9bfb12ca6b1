"""Reward the candidates of each training query.

    python -m ray_jobs.label --config configs/demo.yaml

reads   candidates/*.parquet                   records.GROUP
writes  labelled/blocks/*.parquet              records.LABELLED, committed block by block
        labelled/reranked/*.parquet            the same from the teacher `reranker`
        labelled/provenance.json               what the labels depend on
        reports/labelling.html, labelling.json how much signal they carry, and whether they can be trusted
        reports/sample/labelling.*             the same of a sample (`--sample 50`), before the labelling is paid for

The teacher (`label.teacher`) is the LLM, a cross-encoder trained on the LLM's rewards, or rewards made elsewhere that
`prepare` kept. Groups of tasks without a reward (labels only) pass through. A group that cannot be scored keeps its
rewards null and says why. Running the command again labels only the groups no block holds; labels of another LLM,
prompt or seed are refused. An actor pool of Ray Data loads the LLM once per actor. `label.recompute` recomputes the
rewards from the stored log-likelihoods, without the LLM.
"""

from __future__ import annotations

from embedder.config.run import RunConfig
from embedder.run.cost import Work
from embedder.run.stage_report import StageReport
from ray_jobs.cluster.session import Job, main
from ray_jobs.labelling.teachers import teacher_of


def check(config: RunConfig) -> Work:
    """What the teacher needs is there, and its labels would not mix with others."""
    return teacher_of(config).check()


def rehearse(config: RunConfig) -> list[str]:
    """Label a few groups of each task on this machine, and tell from it how long the rest will take."""
    return teacher_of(config).rehearse()


def sample(config: RunConfig, count: int) -> list[str]:
    """The same with so many groups of each task, and with a report on whether their rewards can be trusted."""
    return teacher_of(config).rehearse(count)


def run(config: RunConfig) -> StageReport:
    """Label what is not labelled; the summary counts rows and says how much signal the rewards carry."""
    from ray_jobs.labelling.summary import report_labels

    return report_labels(config, teacher_of(config).run())


JOB = Job("label", __doc__, check, run, rehearse, sample)

if __name__ == "__main__":
    main(JOB)
