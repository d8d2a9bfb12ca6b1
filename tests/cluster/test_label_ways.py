"""The ways of `label` besides plain labelling, each on Ray: recompute, import and export, dry run, reranker, poison."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from embedder.config.load import load_run
from embedder.config.run import LlmConfig
from embedder.data.ledger import Ledger
from embedder.data.records import GROUP, LABELLED, group_id
from embedder.labelling.labeller import MAX_CHARACTERS
from embedder.models.causal_lm import load_lm
from ray_jobs.labelling.block_plan import read_row_group, survey
from tests.cluster.conftest import ROOT, Cluster, free_port
from tests.cluster.label_actors import BEGUN
from tests.cluster.label_helpers import Driver, group, write_groups, write_run_file
from tests.unit.llm_server import LlmServer
from tests.web_server import answering

pytestmark = [pytest.mark.ray, pytest.mark.slow]
QA, TOOL = 10, 4
BLOCK_ROWS = 4


@pytest.fixture(scope="module")
def driver(cluster: Cluster) -> Iterator[Driver]:
    """One driver for all tests of this file."""
    started = Driver(cluster.address)
    yield started
    started.close()


@pytest.fixture(scope="module")
def run_file(
    driver: Driver, tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path, tiny_encoder_folder: Path
) -> Path:
    """A run that is labelled, and exported to `export.jsonl` beside its run file."""
    folder = tmp_path_factory.mktemp("ways")
    path = write_run(folder, tiny_llama_folder, tiny_encoder_folder, export=str(folder / "export.jsonl"))
    succeeded(driver.call(path))
    return path


def write_run(folder: Path, llm: Path, encoder: Path, **label: object) -> Path:
    """Groups of a task with ranks and of one without a reward."""
    for task, count in (("qa", QA), ("tool", TOOL)):
        groups = [group(task, f"of-{task}", number) for number in range(count)]
        write_groups(groups, folder / "work" / "candidates" / f"{task}.parquet", row_group_rows=8)
    return write_run_file(folder, llm, encoder, block_rows=BLOCK_ROWS, **label)


def succeeded(result: tuple[int, str]) -> str:
    """The output of a call that must have ended well, on one line."""
    code, output = result
    assert code == 0, output
    return " ".join(output.split())


def refused(result: tuple[int, str]) -> str:
    """The error of a call that must have ended with one, on one line."""
    code, output = result
    assert code == 2 and "Traceback" not in output, output
    return " ".join(output.partition("error: ")[2].split())


def rows_of(run_file: Path, folder: str = "blocks") -> dict[str, dict[str, Any]]:
    """Labelled rows by query."""
    ledger = Ledger(run_file.parent / "work" / "labelled" / folder, LABELLED, "row_id")
    return {row["query_id"]: row for row in ledger.read().to_pylist()}


def to_server(run_file: Path, url: str, **endpoint: object) -> Path:
    """The same run with its LLM on a server."""
    run = yaml.safe_load(run_file.read_text())
    del run["llm"]["batch_tokens"]
    run["llm"]["endpoint"] = {"url": f"{url}/v1", "model": "tiny", **endpoint}
    run_file.write_text(yaml.safe_dump(run), encoding="utf-8")
    return run_file


def _with(server: LlmServer, name: str, value: str, driver: Driver, run_file: Path, gain: list[str]) -> tuple[int, str]:
    """The outcome of a call while the server is another one."""
    before = getattr(server, name)
    setattr(server, name, value)
    try:
        return driver.call(run_file, *gain)
    finally:
        setattr(server, name, before)


def units_begun(run_file: Path) -> int:
    """How many units actors have begun in all calls."""
    return len((run_file.parent / "cache" / BEGUN).read_text().splitlines())


def test_label_refuses_another_seed_with_both_fingerprints(driver: Driver, run_file: Path) -> None:
    noted = json.loads((run_file.parent / "work" / "labelled" / "provenance.json").read_text())["fingerprint"]
    assert {row["label_fingerprint"] for row in rows_of(run_file).values()} == {noted}
    error = refused(driver.call(run_file, "--set", "label.seed=1"))
    words = error.replace(",", " ").split()
    known, wanted = words[words.index("labels") + 1], words[words.index("make") + 1]
    assert known == noted != wanted and len(wanted) == len(noted) and wanted.isalnum()
    assert "another LLM" in error


def test_recompute_makes_other_rewards_without_the_llm(driver: Driver, run_file: Path) -> None:
    before, begun = rows_of(run_file), units_begun(run_file)
    likelihood = ["--set", "tasks.qa.reward=likelihood"]
    assert "label.recompute=true" in refused(driver.call(run_file, *likelihood))
    recompute = ["--set", "label.recompute=true"]
    assert f"{QA + TOOL} groups in" in succeeded(driver.call(run_file, *likelihood, *recompute))
    for row in rows_of(run_file).values():
        if row["task"] == "qa":
            assert (
                row["rewards"] == pytest.approx([scores[0] for scores in row["scores"]])
                and row["reward"] == "likelihood"
            )
    plain = ["--set", "tasks.qa.reward=none", "--set", "tasks.qa.loss=contrastive"]
    assert "from or to no reward" in refused(driver.call(run_file, *recompute, *plain))
    succeeded(driver.call(run_file, *recompute))
    assert rows_of(run_file) == before and units_begun(run_file) == begun


def test_label_rewards_queries_without_answers_and_keeps_these_labels_apart(
    driver: Driver, tmp_path: Path, tiny_llama_folder: Path, tiny_encoder_folder: Path
) -> None:
    groups = [{**group("qa", "of-qa", number), "answers": []} for number in range(QA)]
    write_groups(groups, tmp_path / "work" / "candidates" / "qa.parquet", row_group_rows=8)
    path = write_run_file(tmp_path, tiny_llama_folder, tiny_encoder_folder, block_rows=BLOCK_ROWS)
    own = ["--set", "tasks.qa.reward=own_answers"]
    assert "of-qa: no training row has an answer" in succeeded(driver.call(path, "--dry-run", *own))
    shown = ["--set", "tasks.qa.worked_examples=[{query: which city, answer: Paris}]"]
    output = succeeded(driver.call(path, *own, *shown))
    assert f"{QA} groups in = {QA} out" in output and "no training row has an answer" not in output
    rows = rows_of(path)
    assert len(rows) == QA and all(row["error"] is None and len(row["rewards"]) == 4 for row in rows.values())
    assert "another LLM, prompt" in refused(driver.call(path, *shown))
    again = succeeded(driver.call(path, *own, *shown))
    assert f"{QA} were labelled before this run" in again and rows_of(path) == rows


def test_label_again_keeps_the_cost_of_the_labelling_in_report_and_page(driver: Driver, run_file: Path) -> None:
    reports = run_file.parent / "work" / "reports"
    before = {name: json.loads((reports / name).read_text()) for name in ("label.json", "labelling.json")}
    assert before["label.json"]["details"]["cost"]["pairs"] == 4 * QA == before["labelling.json"]["cost"]["pairs"]
    output = succeeded(driver.call(run_file))
    assert "all was done before: the report keeps" in output
    after = {name: json.loads((reports / name).read_text()) for name in before}
    assert after["labelling.json"] == before["labelling.json"]
    assert after["label.json"]["seconds"] == before["label.json"]["seconds"]
    for name in ("cost", "estimate", "resources"):
        assert after["label.json"]["details"][name] == before["label.json"]["details"][name]


def test_label_of_one_more_group_labels_that_group_alone(
    driver: Driver, tmp_path: Path, tiny_llama_folder: Path, tiny_encoder_folder: Path
) -> None:
    groups = [group("qa", "of-qa", number) for number in range(QA)]
    path, candidates = tmp_path / "run", tmp_path / "run" / "work" / "candidates" / "qa.parquet"
    write_groups(groups, candidates, row_group_rows=8)
    run_file = write_run_file(path, tiny_llama_folder, tiny_encoder_folder, block_rows=BLOCK_ROWS, unit_groups=4)
    # Without worked examples, which a new query would change for all.
    shots = ["--set", "tasks.qa.shots=0"]
    succeeded(driver.call(run_file, *shots))
    before, begun = rows_of(run_file), units_begun(run_file)
    write_groups([*groups, group("qa", "of-qa", QA)], candidates, row_group_rows=8)
    assert f"{QA} were labelled before this run; 0 repeated" in succeeded(driver.call(run_file, *shots))
    after = rows_of(run_file)
    assert units_begun(run_file) == begun + 1
    assert after.keys() - before.keys() == {f"of-qa-{QA}"} and {query: after[query] for query in before} == before


def damaged_scores(path: Path) -> bytes:
    """The file with zeros for the log-likelihoods; ids and queries can still be read."""
    content = bytearray(path.read_bytes())
    with pq.ParquetFile(path) as file:
        columns = [file.metadata.row_group(0).column(number) for number in range(file.metadata.num_columns)]
    [scores] = [column for column in columns if column.path_in_schema.startswith("scores.")]
    start = scores.dictionary_page_offset or scores.data_page_offset
    content[start : start + scores.total_compressed_size] = bytes(scores.total_compressed_size)
    return bytes(content)


def test_recompute_that_breaks_off_must_be_ended_first(driver: Driver, run_file: Path) -> None:
    before = rows_of(run_file)
    last = sorted((run_file.parent / "work" / "labelled" / "blocks").glob("*.parquet"))[-1]
    whole = last.read_bytes()
    recompute = ["--set", "label.recompute=true", "--set", "tasks.qa.reward=gain"]
    last.write_bytes(damaged_scores(last))
    assert last.name in refused(driver.call(run_file, *recompute))
    last.write_bytes(whole)
    assert {row["reward"] for row in rows_of(run_file).values()} == {"rank", "gain", "none"}
    for reward in ("rank", "gain"):
        assert "being recomputed" in refused(driver.call(run_file, "--set", f"tasks.qa.reward={reward}"))
    succeeded(driver.call(run_file, *recompute))
    assert {row["reward"] for row in rows_of(run_file).values()} == {"gain", "none"}
    succeeded(driver.call(run_file, "--set", "label.recompute=true"))
    assert rows_of(run_file) == before


def plain_lines(path: Path) -> list[str]:
    """Exported rows without the ids of candidates, which an import makes from their texts."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(json.dumps({**row, "pos_index": None, "neg_index": None}) for row in rows)


def test_imported_teacher_takes_an_export_and_exports_the_same(
    driver: Driver, run_file: Path, tmp_path: Path, tiny_encoder_folder: Path
) -> None:
    exported, second_export = run_file.parent / "export.jsonl", tmp_path / "again.jsonl"
    again = write_run_file(tmp_path, Path("no-llm"), tiny_encoder_folder, teacher="imported", export=str(second_export))
    sources = [
        {"task": task, "dataset": f"of-{task}", "path": str(exported), "format": "reference", "teacher_scores": True}
        for task in ("qa", "tool")
    ]
    assert "no training query has teacher_scores" in refused(driver.call(again))
    prepare = ["--set", f"prepare.sources={json.dumps(sources)}"]
    output = succeeded(driver.call(again, *prepare, stage="prepare"))
    assert f"of-qa: {QA + TOOL} rows in = {QA} out + {TOOL} left out by limits + 0 rejected" in output
    succeeded(driver.call(again, stage="mine"))
    assert f"{QA + TOOL} groups in = {QA + TOOL} out; 0 were labelled before" in succeeded(driver.call(again))
    first, second = rows_of(run_file), rows_of(again)
    assert first.keys() == second.keys() and len({str(row["rewards"]) for row in first.values()}) > QA // 2
    for query, row in second.items():
        if row["task"] == "qa":
            assert row["rewards"] == first[query]["rewards"]
            assert row["candidate_texts"] == first[query]["candidate_texts"]
        assert row["reward"] == ("imported" if row["task"] == "qa" else "none") and row["scores"] is None
    lines = [plain_lines(path) for path in (exported, second_export)]
    assert [line for line in lines[0] if '"qa"' in line] == [line for line in lines[1] if '"qa"' in line]
    assert len(lines[0]) == len(lines[1]) == QA + TOOL
    assert f"{QA + TOOL} were labelled before" in succeeded(driver.call(again))
    sources[0]["train_queries"] = QA - 1
    succeeded(driver.call(again, "--set", f"prepare.sources={json.dumps(sources)}", stage="prepare"))
    assert "holds labels" in refused(driver.call(again))


def test_label_in_bfloat16_tells_what_that_changed_and_what_scored(
    driver: Driver, tmp_path: Path, tiny_llama_folder: Path, tiny_encoder_folder: Path
) -> None:
    path, half = write_run(tmp_path, tiny_llama_folder, tiny_encoder_folder), ["--set", "llm.dtype=bfloat16"]
    told, again = succeeded(driver.call(path, *half)), succeeded(driver.call(path, *half))
    for output in (told, again):
        assert "scored on cpu, bfloat16, chunked tree" in output
        assert f"bfloat16 beside float32, on {QA} groups: " in output and f"of {4 * QA} rank rewards differ" in output
    noted = json.loads((tmp_path / "work" / "labelled" / "provenance.json").read_text())
    assert noted["devices"] == ["cpu, bfloat16, chunked tree"]


def test_label_dry_run_times_a_sample_and_asks_the_cluster_that_is_named(
    tmp_path: Path, tiny_llama_folder: Path, tiny_encoder_folder: Path
) -> None:
    run_file = write_run(tmp_path, tiny_llama_folder, tiny_encoder_folder, gpus_per_actor=0.5)
    command = [sys.executable, "-m", "ray_jobs.label", "--config", str(run_file), "--dry-run"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}

    def rehearse(**names: str) -> tuple[int, str]:
        job = subprocess.run(
            command, env=environment | names, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )
        return job.returncode, " ".join((job.stdout + job.stderr).split())

    code, output = rehearse()
    assert code == 0, output
    assert f"qa: {QA} groups, {QA} still to label ({QA * 4} pairs" in output and "pairs/s" in output
    assert "GPU-hours" in output and "hours of one actor like this machine (cpu, float32)" in output
    assert output.count("TFLOP") == 1 and "of model work" not in output  # one estimate, the measured one
    code, output = rehearse(RAY_ADDRESS="127.0.0.1:1")
    assert code == 2 and "no Ray answers at" in output and "correct RAY_ADDRESS" in output
    assert not (tmp_path / "work" / "labelled").exists()


POISON = {
    "bytes": {"query": b"caf\xe9"},
    "empty": {"candidate_texts": [b"  ", b"the fox"], "candidate_ids": [b"a", b"b"], "relevance": [1, 0]},
    "none": {"candidate_texts": [], "candidate_ids": [], "relevance": []},
    "long": {
        "candidate_texts": [b"x" * (10 * MAX_CHARACTERS), b"the fox"],
        "candidate_ids": [b"a", b"b"],
        "relevance": [1, 0],
    },
    "silent": {"answers": [b" "]},
}
REASONS = {
    "bytes": "not valid UTF-8",
    "empty": "candidate 0 is empty",
    "none": "no candidates",
    "long": "10,000,000 characters",
    "silent": "the desired output is empty",
}


def write_poisoned(folder: Path) -> None:
    """Groups of which some cannot be labelled, among others that can."""
    binary = {pa.string(): pa.binary(), pa.list_(pa.string()): pa.list_(pa.binary())}
    schema = pa.schema([(field.name, binary.get(field.type, field.type)) for field in GROUP])
    groups = [group("qa", "poisoned", number) for number in range(QA)]
    for number, name in enumerate(POISON):
        groups.insert(2 * number + 1, {**group("qa", "poisoned", 100 + number), **POISON[name], "query_id": name})
    table = pa.Table.from_pylist(groups, schema)
    arrays = [
        pa.Array.from_buffers(field.type, len(table), column.buffers())
        if field.type == pa.string()
        else column.view(field.type)
        for field, column in zip(GROUP, (table[name].combine_chunks() for name in GROUP.names), strict=True)
    ]
    write_groups([group("qa", "poisoned", 0)], folder / "work" / "candidates" / "qa.parquet", 1)
    pq.write_table(pa.Table.from_arrays(arrays, schema=GROUP), folder / "work" / "candidates" / "qa.parquet")


def test_label_rejects_poisoned_rows_alone(
    driver: Driver, tmp_path: Path, tiny_llama_folder: Path, tiny_encoder_folder: Path
) -> None:
    write_poisoned(tmp_path)
    run_file = write_run_file(tmp_path, tiny_llama_folder, tiny_encoder_folder, block_rows=BLOCK_ROWS)
    config = load_run(run_file)
    ledger = Ledger(config.paths.labelled / "blocks", LABELLED, "row_id")
    blocks = survey(config, ledger, BLOCK_ROWS).blocks.to_pylist()
    total = QA + len(POISON)
    error = refused(driver.call(run_file))
    assert f"{len(POISON)} of {total} groups could not be scored" in error and "label.max_error_share" in error
    rows = rows_of(run_file)
    for name, reason in REASONS.items():
        assert reason in rows[name]["error"] and rows[name]["rewards"] is None
    assert sum(row["error"] is None and len(row["rewards"]) == 4 for row in rows.values()) == QA
    for block in blocks:
        planned = read_row_group(config.paths.candidates / block["file"], block["row_group"])
        assert ledger.holds(planned.ids_of(block["units"]))
    begun = units_begun(run_file)
    succeeded(driver.call(run_file, "--set", "label.max_error_share=0.5"))
    assert units_begun(run_file) == begun


def test_reranker_teacher_labels_what_the_llm_was_not_asked(
    driver: Driver, run_file: Path, tmp_path: Path, tiny_llama_folder: Path, tiny_encoder_folder: Path
) -> None:
    path = write_run(tmp_path, tiny_llama_folder, tiny_encoder_folder)
    chosen = 6
    reranker = f"{{model: {tiny_encoder_folder}, llm_groups: {chosen}, steps: 2, batch_size: 4, max_tokens: 32}}"
    output = succeeded(driver.call(path, "--set", "label.teacher=reranker", "--set", f"reranker={reranker}"))
    assert f"{QA + TOOL} groups in = {QA + TOOL} out" in output and "reranker, qa: trained on" in output
    by_llm, by_reranker = rows_of(path), rows_of(path, "reranked")
    assert sum(row["reward"] == "rank" for row in by_llm.values()) == chosen and len(by_llm) == chosen + TOOL
    assert sum(row["reward"] == "reranker" and len(row["rewards"]) == 4 for row in by_reranker.values()) == QA
    assert {group_id(row) for row in by_reranker.values()} == {group_id(row) for row in rows_of(run_file).values()}


def test_label_by_a_server_gives_the_rewards_of_the_same_llm_here_and_goes_on_after_a_failure(
    driver: Driver, tmp_path: Path, tiny_llama_folder: Path, tiny_encoder_folder: Path
) -> None:
    lm = load_lm(LlmConfig(model=str(tiny_llama_folder)), tmp_path / "cache", device="cpu")
    gain = ["--set", "tasks.qa.reward=gain"]
    here = write_run(tmp_path / "here", tiny_llama_folder, tiny_encoder_folder)
    succeeded(driver.call(here, *gain))
    server = LlmServer(lm)
    with answering(server.app(), free_port()) as url:
        there = write_run(tmp_path / "there", tiny_llama_folder, tiny_encoder_folder)
        to_server(there, url, prompt_price=1000, attempts=1, max_money=1000)
        assert "more than llm.endpoint.max_money 0.01" in refused(
            driver.call(there, *gain, "--set", "llm.endpoint.max_money=0.01")
        )
        assert "gives no log-likelihoods" in refused(_with(server, "spoiled", "zeros", driver, there, gain))
        told = succeeded(driver.call(there, *gain, "--dry-run"))
        assert "prompt_logprobs of token ids" in told and " tokens, money " in told
        assert not (there.parent / "work" / "labelled").exists()
        # It fails in the middle, keeps its blocks, and goes on with the others.
        server.lasts = len(server.requests) + 60
        assert "status 500" in refused(driver.call(there, *gain))
        before = len(rows_of(there))
        assert 0 < before < QA + TOOL
        server.lasts = None
        assert "another engine or LLM made what is there (engine 'vllm' -> 'sglang'" in refused(
            _with(server, "engine", "sglang", driver, there, gain)
        )
        asked = len(server.requests)
        told = succeeded(driver.call(there, *gain))
        assert len(server.requests) - asked <= 5 * (QA + TOOL - before) + 40 and "money" in told
    expected = rows_of(here)
    for query, row in rows_of(there).items():
        assert row["error"] is None and (row["rewards"] is None) == (expected[query]["rewards"] is None)
        assert row["rewards"] is None or row["rewards"] == pytest.approx(expected[query]["rewards"], abs=1e-4)
