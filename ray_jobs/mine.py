"""Find the candidates of each training query.

    python -m ray_jobs.mine --config configs/demo.yaml

reads   prepared/corpus, prepared/queries/train      records.PASSAGE, records.QUERY
writes  vectors/ENCODER/DATASET.SIDE/*.parquet       committed blocks; a second run encodes only what is missing
        candidates/DATASET.parquet                   records.GROUP

Candidates come from the lexical ranking (BM25) and the dense one (the run's encoder), over the dataset's passages or
over those a query brings along (chat history, earlier chunks).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from embedder.config.paths import Paths
from embedder.config.run import RunConfig
from embedder.data.records import GROUP, count_rows, parquet_files, write_table
from embedder.errors import DataError
from embedder.run.cost import Work
from embedder.run.stage_report import StageReport
from ray_jobs.cluster.session import Job, main
from ray_jobs.cluster.tables import datasets, encoding_work, passage_texts, queries

if TYPE_CHECKING:
    from embedder.mining.ranking import Ranking
    from ray_jobs.retrieval.vectors import VectorStore


def check(config: RunConfig) -> Work:
    """The prepared tables and the encoder's folder exist, and there are training queries."""
    if not count_rows(parquet_files(config.paths.queries / "train")) and datasets(config.paths):
        raise DataError(
            f"{config.paths.queries / 'train'}: no training queries; give a source of prepare.sources training rows "
            "and run prepare"
        )

    def line(name: str) -> str:
        count = len(queries(config.paths, "train", name))
        return f", {count:,} train queries, groups of {config.mine.group_size}"

    work = encoding_work("mine", config.paths, config.encoder, line)
    # Last and imported here, because torch comes with it: what can be refused without torch has been by now.
    from embedder.models.encoder import check_encoder

    check_encoder(config.encoder)
    return work


def run(config: RunConfig) -> StageReport:
    """Encode, rank and group; the summary counts groups and filtered passages."""
    import ray

    from ray_jobs.cluster.metrics import track_progress
    from ray_jobs.retrieval.rankings import dense_rankings, lexical_rankings
    from ray_jobs.retrieval.vectors import fill_store, open_store

    store = open_store(config, config.encoder)
    encoded = fill_store(config, store, config.encoder, ["train"])
    names = datasets(config.paths)
    report = StageReport("mine", 0, "groups", details={"encoded": encoded})
    report.lines += store.cut_lines(config.paths, ["train"])
    depth = config.mine.window[1] + 1
    # Started before the dense ones are waited for, so that both run at once.
    lexical = {name: lexical_rankings.remote(config.paths, config.words, "train", name, depth) for name in names}
    dense = dense_rankings(config, store, "train", depth)
    _remove_stale(config.paths, set(names))
    with track_progress("mine: datasets", len(names)) as counter:
        for name in names:
            counts = _mine_dataset(config, store, name, ray.get(lexical[name]), dense.get(name, {}))
            counter.advance(1)
            report.rows += counts["groups"]
            report.details[name] = dict(counts)
            report.lines.append(
                f"{name}: {counts['groups']:,} groups with {counts['candidates']:,} candidates, "
                f"{counts['positives']:,} of them known positives; kept out {counts['known']:,} as known, "
                f"{counts['near_positives']:,} as near as a positive and {counts['duplicates']:,} as duplicates; "
                f"{counts['short']:,} groups smaller than {config.mine.group_size}"
            )
    return report


def _remove_stale(paths: Paths, kept: set[str]) -> None:
    """Remove groups of datasets that an earlier run file named."""
    for path in paths.candidates.glob("*.parquet"):
        if path.stem not in kept:
            path.unlink()


def _mine_dataset(
    config: RunConfig, store: VectorStore, name: str, lexical: dict[str, Ranking], dense: dict[str, Ranking]
) -> Counter[str]:
    """Write the groups of one dataset and count them."""
    from embedder.mining.candidates import make_group
    from ray_jobs.retrieval.rankings import dense_scores

    passages = passage_texts(config.paths, name)
    asked = queries(config.paths, "train", name)
    # What a dense ranking holds has its score there; a positive, or what was found by words, may stand below its end.
    wanted = {
        query["query_id"]: {*query["positive_ids"], *dict(lexical[query["query_id"]])}
        for query in asked
        if config.mine.positive_share is not None and query["positive_ids"] and query["teacher_scores"] is None
    }
    scores = dense_scores(config.paths, store, "train", name, wanted) if wanted else {}
    counts: Counter[str] = Counter()
    groups = []
    for query in asked:
        query_id = query["query_id"]
        rankings = {"lexical": lexical[query_id], "dense": dense[query_id]}
        own_scores = {**dict(dense[query_id]), **scores.get(query_id, {})}
        group, kept_out = make_group(query, rankings, passages, config.mine, own_scores)
        groups.append(group)
        counts["groups"] += 1
        counts["candidates"] += len(group["candidate_ids"])
        counts["positives"] += sum(group["relevance"])
        counts.update(kept_out)
        counts["short"] += len(group["candidate_ids"]) < config.mine.group_size
    write_table(groups, GROUP, config.paths.candidates / f"{name}.parquet")
    return counts


JOB = Job("mine", __doc__, check, run)

if __name__ == "__main__":
    main(JOB)
