"""Find the candidates of each training query.

    python -m ray_jobs.mine --config configs/demo.yaml

reads   prepared/corpus, prepared/queries/train      records.PASSAGE, records.QUERY
writes  vectors/ENCODER/DATASET.SIDE/*.parquet       committed blocks; a second run encodes only what is missing
        rankings/train/DATASET/*/*.parquet           records.RANKING; a second run ranks only what is missing
        candidates/DATASET.parquet                   records.GROUP

Candidates come from the lexical ranking (BM25) and the dense one (the run's encoder), over the dataset's passages or
over those a query brings along (chat history, earlier chunks). All rows pass from task to task; the driver holds none.
"""

from __future__ import annotations

from embedder.config.paths import Paths
from embedder.config.run import RunConfig
from embedder.data.records import count_rows, parquet_files
from embedder.errors import DataError
from embedder.run.cost import Work
from embedder.run.stage_report import StageReport
from embedder.storage.object_store import entries
from ray_jobs.cluster.session import Job, main
from ray_jobs.cluster.tables import datasets, encoding_work


def check(config: RunConfig) -> Work:
    """The prepared tables and the encoder's folder exist, and there are training queries."""
    if not count_rows(parquet_files(config.paths.queries / "train")) and datasets(config.paths):
        raise DataError(
            f"{config.paths.queries / 'train'}: no training queries; give a source of prepare.sources training rows "
            "and run prepare"
        )

    def line(name: str) -> str:
        path = config.paths.queries / "train" / f"{name}.parquet"
        count = count_rows([path] if path.is_file() else [])
        return f", {count:,} train queries, groups of {config.mine.group_size}"

    work = encoding_work("mine", config.paths, config.encoder, line)
    # Last and imported here, because torch comes with it: what can be refused without torch has been by now.
    from embedder.models.encoder import check_encoder

    check_encoder(config.encoder)
    return work


def run(config: RunConfig) -> StageReport:
    """Encode, rank and group; the summary counts groups and filtered passages."""
    from ray_jobs.cluster.metrics import track_progress
    from ray_jobs.retrieval.candidate_groups import write_groups
    from ray_jobs.retrieval.ranking_files import Search, remove_stale
    from ray_jobs.retrieval.vector_rankings import rank_by_vectors
    from ray_jobs.retrieval.vectors import fill_store, open_store
    from ray_jobs.retrieval.word_rankings import rank_by_words

    store = open_store(config, config.encoder)
    encoded = fill_store(config, store, config.encoder, ["train"])
    names = datasets(config.paths)
    report = StageReport("mine", 0, "groups", details={"encoded": encoded})
    report.lines += store.cut_lines(config.paths, ["train"])
    _remove_stale(config.paths, set(names))
    rankings = []
    asked = count_rows(parquet_files(config.paths.queries / "train"))
    # Each query is ranked by words, ranked by vectors, and grouped.
    with track_progress("mine", 3 * asked) as progress:
        for name in names:
            search = Search("train", name, config.mine.window[1] + 1)
            words = rank_by_words(config.paths, config.words, search, progress)
            near = words if config.mine.positive_share is not None else None
            vectors = rank_by_vectors(config, store, search, progress, near)
            rankings += [words, vectors]
            counts = write_groups(config.paths, config.mine, name, words, vectors, progress)
            report.rows += counts["groups"]
            report.details[name] = dict(counts)
            report.lines.append(
                f"{name}: {counts['groups']:,} groups with {counts['candidates']:,} candidates, "
                f"{counts['positives']:,} of them known positives; kept out {counts['known']:,} as known, "
                f"{counts['near_positives']:,} as near as a positive and {counts['duplicates']:,} as duplicates; "
                f"{counts['short']:,} groups smaller than {config.mine.group_size}"
            )
    remove_stale(config.paths, "train", rankings)
    return report


def _remove_stale(paths: Paths, kept: set[str]) -> None:
    """Remove groups of datasets that an earlier run file named."""
    for path in entries(paths.candidates, "*.parquet"):
        if path.stem not in kept:
            path.unlink()


JOB = Job("mine", __doc__, check, run)

if __name__ == "__main__":
    main(JOB)
