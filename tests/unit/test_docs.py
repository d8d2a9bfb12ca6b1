"""The docs of the platform: every command is marked as run or as needing a cloud, and numbers are those computed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.scaling import Run, tables
from embedder.config.load import load_run
from ray_jobs.cluster import metrics

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TESTS = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("*.py"))}
BLOCK = re.compile(r"^```sh ?(.*)\n((?:(?!```).*\n)*)```$", re.MULTILINE)


def blocks(path: Path) -> list[tuple[str, str]]:
    """Mark and commands of every shell block."""
    return BLOCK.findall(path.read_text(encoding="utf-8"))


def test_the_docs_have_commands_of_all_three_kinds():
    marks = {mark.split(":")[0] for path in DOCS for mark, _ in blocks(path)}
    assert marks == {"cloud", "run", "tested"}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)
def test_every_command_is_run_by_a_test_or_marked_as_needing_a_cloud(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("```sh") == len(blocks(path))
    assert not re.search(r"^(    |\t)(python|ray|kubectl|docker|serve|curl) ", text, re.MULTILINE), (
        "a block without mark"
    )
    for mark, commands in blocks(path):
        kind, _, name = mark.partition(": ")
        assert kind in {"cloud", "run", "tested"}, mark
        if kind == "tested":
            (source,) = (source for source in TESTS.values() if f"def {name}(" in source)
            for word in re.findall(r"python -m (\S+)|\b(ray_jobs\.\w+)|(RAY_AUTH_\w+)=|^(ray start)", commands):
                wanted = next(one for one in word if one)
                assert (
                    wanted in source
                    or wanted.replace(" ", '", "') in source
                    or re.search(rf'(?:start|submit|stage)\w*\(.*"{wanted.removeprefix("ray_jobs.")}"', source)
                    or wanted in TESTS[ROOT / "tests" / "conftest.py"]
                )


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)
def test_every_file_test_and_setting_that_the_docs_name_is_there(path):
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"`(test_\w+_\w+)`", text):
        assert any(f"def {name}(" in source for source in TESTS.values()), name
    for name in re.findall(r"`((?:kubernetes|embedder|benchmarks|configs)/[\w./-]+|[\w-]+\.yaml|Dockerfile)`", text):
        assert (ROOT / name).exists() or (ROOT / "kubernetes" / name).exists(), name
    for target in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (path.parent / target).exists(), target


def test_every_target_of_the_makefile_that_the_docs_name_is_there():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for path in DOCS:
        for name in re.findall(r"\bmake (demo|test|slow|check|install|clean)\b", path.read_text(encoding="utf-8")):
            assert name in targets, name


def test_the_run_file_of_the_quick_start_is_one(tmp_path):
    """And so is every other block of YAML that has paths and an encoder."""
    for path in DOCS:
        for text in re.findall(
            r"^```yaml\n(paths:.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        ):
            file = tmp_path / "run.yaml"
            file.write_text(text, encoding="utf-8")
            if "encoder:" in text:
                load_run(file)


def test_the_cost_tables_are_those_of_the_calculator():
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    shown = text.split("<!-- begin: python -m benchmarks.scaling -->\n")[1].split("<!-- end -->")[0]
    assert shown.splitlines() == tables(Run())


def test_measured_rates_stand_in_the_results():
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| [^|]+ \| (\d[\d.,]*) tokens/s \| [^|]+ \| `benchmarks/RESULTS\.md`, (\w+) \|$", text, re.MULTILINE
    )
    assert rows
    for rate, section in rows:
        assert f"{rate} tokens/s" in results.split(f"## {section}\n")[1]


def test_the_dashboard_of_jobs_shows_metrics_that_jobs_have():
    text = (ROOT / "docs" / "grafana-jobs.json").read_text(encoding="utf-8")
    own = set(re.findall(r"ray_(embedder_\w+)", text))
    assert own == {metrics.DONE, metrics.TOTAL}
