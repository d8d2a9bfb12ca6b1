"""Let the LLM write questions for a corpus that has none.

    python -m ray_jobs.questions --config configs/bare-corpus.yaml
    llm-embedder questions --config run.yaml --dry-run

reads   prepared/corpus, prepared/queries            records.PASSAGE, records.QUERY
writes  vectors/ENCODER/DATASET.passage/*.parquet    committed blocks; `mine` needs the same ones
        questions/IDENTITY/drafts/*.parquet          what the LLM wrote (draft_tables.DRAFT), in committed blocks
        questions/IDENTITY/checks/*.parquet          scores of the best draft of each row (draft_tables.CHECK)
        prepared/queries/SPLIT/DATASET.parquet       the questions that are kept, train and test (records.QUERY)

For datasets without training queries. IDENTITY names LLM, prompts, sampling and seed, so that drafts of two are never
mixed; a job that was cut off goes on with the blocks that are missing. Thresholds decide at the end: another one needs
no LLM. Passages that queries of a dev or test split need are not asked about; of a dataset without such queries a share
of the passages is kept for test queries alone (docs/questions.md).
"""

from __future__ import annotations

from typing import Any

from embedder.config.run import RunConfig
from embedder.data.records import open_parquet
from embedder.errors import DataError
from embedder.models.locate import locate_model
from embedder.run.cost import Work, forward_flops, tokens_of
from embedder.run.stage_report import StageReport
from ray_jobs.cluster.llm_server import AskedTokens, server_lines
from ray_jobs.cluster.session import Job, main
from ray_jobs.cluster.tables import corpus_files, encoding_work
from ray_jobs.writing.asked_passages import asked_datasets, passages_with_kinds
from ray_jobs.writing.draft_tables import check_ledger, draft_ledger, questions_fingerprint

PROMPT_TOKENS = 300
"""Estimated tokens of the worked examples before a passage."""
SAMPLE_PASSAGES = 256


def check(config: RunConfig) -> Work:
    """Some dataset has no training queries, questions can be written for its task, and encoder and LLM are there."""
    settings, llm = config.needed_questions, config.needed_llm
    asked = asked_datasets(config)
    counts = {each.name: each.asked(settings) * len(each.kinds) for each in asked}
    lines, read, written = [], 0.0, 0.0
    for each in asked:
        own = _question_tokens(config, _passage_tokens(config, each.name))
        read, written = read + counts[each.name] * own.read, written + counts[each.name] * own.written
        lines.append(
            f"{each.name} ({each.task}): {counts[each.name]:,} questions asked for, {each.asked(settings):,} of "
            f"{each.passages:,} passages x {', '.join(each.kinds)}; {settings.num_samples} drafts of each"
            + (f"; test queries of {settings.test_share:.0%} of the passages" if each.has_test else "")
        )
    names = {each.name for each in asked}
    encoding = encoding_work("questions", config.paths, config.encoder, lambda name: "")
    lines += [line for line in encoding.lines if line.partition(":")[0] in names]
    # Last and imported here, because torch comes with it: what can be refused without torch has been by now.
    from embedder.models.encoder import check_encoder
    from embedder.models.open_llm import check_open

    check_encoder(config.encoder)
    check_open(llm, config.label.gpus_per_actor)
    tokens = AskedTokens(read, written)
    if llm.endpoint is not None:
        folder = draft_ledger(config.paths, questions_fingerprint(config)).folder.parent
        lines += server_lines(llm, llm.endpoint, tokens, settings.max_tokens, folder)
        return Work("questions", lines, encoding.flops, tokens.together + encoding.tokens)
    from embedder.labelling.compute_cost import memory_line, multiplied_weights

    lines.append(memory_line(llm, config.label.gpus_per_actor))
    flops = forward_flops(multiplied_weights(locate_model(llm.model)), tokens.together) + encoding.flops
    return Work("questions", lines, flops, tokens.together + encoding.tokens)


def _question_tokens(config: RunConfig, passage: float) -> AskedTokens:
    """Estimated tokens that the LLM reads and writes for one question about a passage of so many tokens."""
    settings, llm = config.needed_questions, config.needed_llm
    asking = min(llm.max_prefix_tokens, PROMPT_TOKENS + passage)
    drafts = settings.num_samples * settings.max_tokens
    # Each draft is read without and with its passage, and the best one with other passages.
    prompts = 2 * settings.num_samples + settings.other_passages
    passages = settings.num_samples + settings.other_passages
    if llm.endpoint is not None:
        # A server writes one token for each score.
        read = asking + prompts * (PROMPT_TOKENS + settings.max_tokens) + passages * passage
        return AskedTokens(read, drafts + prompts)
    # Here the examples and the passage are read once for all drafts.
    outputs = (settings.num_samples + settings.other_passages + 1) * settings.max_tokens
    return AskedTokens(asking + outputs + (1 + settings.other_passages) * passage, drafts)


def _passage_tokens(config: RunConfig, dataset: str) -> float:
    """Estimated tokens of a passage, from the first ones."""
    with open_parquet(corpus_files(config.paths, dataset)[0]) as file:
        texts = file.read_row_group(0, ["text"])["text"].to_pylist()[:SAMPLE_PASSAGES] if file.num_row_groups else []
    return sum(tokens_of(len(text)) for text in texts) / max(1, len(texts))


def run(config: RunConfig) -> StageReport:
    """Choose passages, write, check and decide; the summary tells the yield and every reason with examples."""
    import ray

    from embedder.models.open_llm import prepare_llm
    from ray_jobs.retrieval.vectors import fill_store, open_store
    from ray_jobs.writing import question_files as files
    from ray_jobs.writing.question_actors import CheckBlocks, WriteBlocks, run_llm, with_other_passages

    # Once here, so that a GGUF file is not converted by every actor.
    prepare_llm(config.needed_llm, config.paths.cache)
    store, datasets = open_store(config, config.encoder), asked_datasets(config)
    encoded = fill_store(config, store, config.encoder, [])
    fingerprint = questions_fingerprint(config)
    drafted, checked = draft_ledger(config.paths, fingerprint), check_ledger(config.paths, fingerprint)
    chosen = {each.name: passages_with_kinds(config, store, each) for each in datasets}
    asked = [row for rows, _ in chosen.values() for row in rows]
    cost = run_llm(config, WriteBlocks, drafted, asked, "questions: write")
    drafts = {each.name: drafted.read(_ids(asked, each.name)) for each in datasets}
    pending = [with_other_passages.remote(config, name, table.to_pylist()) for name, table in drafts.items()]
    ahead = [row for reference in pending for row in ray.get(reference)]
    cost += run_llm(config, CheckBlocks, checked, ahead, "questions: check")
    report = StageReport("questions", 0, "questions", details={"encoded": encoded, "fingerprint": fingerprint})
    report.repeats = not cost.rows
    by_dataset = {}
    for dataset in datasets:
        checks = checked.read(_ids(ahead, dataset.name))
        outcome = files.judge(config, drafts[dataset.name], checks)
        rows = by_dataset[dataset.name] = files.query_rows(outcome, dataset, config)
        report.rows += len(outcome.kept)
        report.lines += files.outcome_lines(dataset.name, outcome, rows)
        if alone := chosen[dataset.name][1]:
            report.lines.append(f"{dataset.name}: no second passage goes with {alone:,} passages")
        report.details[dataset.name] = _details(outcome)
        if not rows.get("train"):
            raise DataError(
                f"dataset {dataset.name}: no question for training is left of {outcome.asked:,} asked for; "
                f"{'; '.join(report.lines[-4:])}; raise questions.passages, or take a larger LLM"
            )
    files.write_queries(config.paths, by_dataset)
    report.details["cost"] = {"tokens": cost.tokens, "flops": cost.flops, "seconds": cost.seconds, "money": cost.money}
    if cost.money:
        report.lines.append(f"the LLM read and wrote {cost.tokens:,.0f} tokens, money {cost.money:,.2f}")
    return report


def _ids(rows: list[dict[str, Any]], dataset: str) -> list[str]:
    return [row["row_id"] for row in rows if row["dataset"] == dataset]


def _details(outcome: Any) -> dict[str, Any]:  # noqa: ANN401 - its module waits until the work begins
    return {
        "asked": outcome.asked,
        "kept": len(outcome.kept),
        "yield": outcome.yield_share,
        "by_kind": {kind: dict(counts) for kind, counts in outcome.by_kind.items()},
        "reasons": dict(outcome.reasons),
        "faults": dict(outcome.faults),
        "examples": outcome.examples,
    }


JOB = Job("questions", __doc__, check, run)

if __name__ == "__main__":
    main(JOB)
