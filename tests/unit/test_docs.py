"""The docs of the platform: every command is marked as run or as needing a cloud, and names are those there are."""

from __future__ import annotations

import importlib
import re
import shlex
from collections import Counter
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import yaml

from embedder.config.load import load_run
from embedder.config.prepare import Source
from embedder.config.tasks import BUILTIN_TASKS
from embedder.data.dataset import read_source
from ray_jobs.cluster import metrics
from ray_jobs.cluster.session import make_parser
from tests.unit.tiny_folders import write_jsonl

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```sh ?(.*)\n((?:(?!```).*\n)*)```$", re.MULTILINE)
each_doc = pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)


def blocks(path: Path) -> list[tuple[str, str]]:
    """Mark and commands of every shell block."""
    return BLOCK.findall(path.read_text(encoding="utf-8"))


@cache
def known_tests() -> Counter[str]:
    """How many tests of each name there are, and fixtures of the conftest files.

    A run of all tests has imported their modules already; alone this takes half a minute.
    """
    names: Counter[str] = Counter()
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path.stem.startswith("test_") or path.stem == "conftest":
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            own = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
            names.update(own)
    return names


def test_docs_have_commands_of_all_three_kinds():
    marks = {mark.split(":")[0] for path in DOCS for mark, _ in blocks(path)}
    assert marks == {"cloud", "run", "tested"}


@each_doc
def test_docs_mark_every_command_as_tested_or_as_needing_a_cloud(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("```sh") == len(blocks(path))
    assert not re.search(r"^(    |\t)(python|ray|kubectl|docker|serve|curl) ", text, re.MULTILINE), (
        "a block without mark"
    )
    for mark, _ in blocks(path):
        kind, _, name = mark.partition(": ")
        assert kind in {"cloud", "run", "tested"}, mark
        assert kind != "tested" or known_tests()[name] == 1, name


@each_doc
def test_docs_start_modules_that_exist_with_options_that_they_take(path):
    for _, commands in blocks(path):
        for module, options in re.findall(r"python -m (\S+)(.*)", commands.replace("\\\n", " ")):
            assert find_spec(module), module
            if module.startswith("ray_jobs.") and hasattr(job := importlib.import_module(module), "JOB"):
                make_parser(job.JOB).parse_args(shlex.split(options, comments=True))


@each_doc
def test_docs_name_files_tests_and_settings_that_exist(path):
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"`(test_\w+_\w+)`", text):
        assert name in known_tests(), name
    for name in re.findall(r"`((?:kubernetes|embedder|benchmarks|configs)/[\w./-]+|[\w-]+\.yaml|Dockerfile)`", text):
        assert (ROOT / name).exists() or (ROOT / "kubernetes" / name).exists(), name
    for target in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (path.parent / target).exists(), target


def test_makefile_has_every_target_that_docs_name():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for path in DOCS:
        for name in re.findall(r"\bmake (demo|test|slow|check|install|clean)\b", path.read_text(encoding="utf-8")):
            assert name in targets, name


def test_run_files_of_the_docs_are_read(tmp_path):
    """Those of every block of YAML that has paths and an encoder."""
    for path in DOCS:
        for text in re.findall(
            r"^```yaml\n(paths:.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        ):
            file = tmp_path / "run.yaml"
            file.write_text(text, encoding="utf-8")
            if "encoder:" in text:
                load_run(file)


WITHOUT_FAULTS = {"README", "index", "configuration", "troubleshooting", "code"}
"""Pages on which nothing is done: what leads to others, what is looked up, and the page of faults itself."""


@each_doc
def test_docs_begin_with_what_the_reader_gets_and_end_with_what_can_go_wrong(path):
    text = path.read_text(encoding="utf-8")
    assert re.match(r"# .+\n\n[A-Z`0-9]", text), "a heading, and then what the page gives"
    if path.stem not in WITHOUT_FAULTS:
        assert re.findall(r"^## (.+)$", text, re.MULTILINE)[-1] == "What can go wrong"


def test_site_shows_every_page_of_the_manual():
    shown = re.findall(r"\b([\w-]+\.md)\b", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(path.name for path in DOCS if path.parent.name == "docs")


def words(svg: str) -> list[str]:
    return re.findall(r"<text [^>]*>([^<]*)</text>", svg)


def test_pictures_of_the_manual_are_what_their_script_draws():
    """By their words, since another matplotlib writes other numbers of the same picture."""
    spec = spec_from_file_location("draw_pictures", ROOT / "docs" / "draw_pictures.py")
    drawing = module_from_spec(spec)
    spec.loader.exec_module(drawing)
    for name, draw in drawing.PICTURES.items():
        stored = (drawing.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
        assert words(drawing.svg(draw)) == words(stored) != [], f"{name}: run `python docs/draw_pictures.py`"
    assert sorted(path.stem for path in drawing.FOLDER.iterdir()) == sorted(drawing.PICTURES)
    shown = {name for path in DOCS for name in re.findall(r"pictures/(\w+)\.svg", path.read_text(encoding="utf-8"))}
    assert shown == set(drawing.PICTURES)


def test_sources_of_the_papers_files_make_a_run_and_their_names_are_read(tmp_path):
    """The sources of docs/paper.md in configs/paper.yaml, and a folder with the file names of the authors' scripts."""
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    (sources,) = re.findall(r"^```yaml\n(prepare:.*?)^```$", page, re.MULTILINE | re.DOTALL)
    run = yaml.safe_load((ROOT / "configs" / "paper.yaml").read_text(encoding="utf-8")) | yaml.safe_load(sources)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    config = load_run(tmp_path / "run.yaml")
    assert {source.format for source in config.prepare.sources} == {"reference"}
    own = load_run(ROOT / "configs" / "paper.yaml").prepare.sources
    assert [source.dataset for source in config.prepare.sources] == [source.dataset for source in own]
    row = {"query": "and the second one?", "answers": ["it"], "pos": ["a text"], "pos_index": [0], "neg": []}
    for name in ("train.concat", "test.concat"):
        write_jsonl(tmp_path / "qrecc" / f"{name}.json", [row])
    write_jsonl(tmp_path / "qrecc" / "corpus.json", [{"text": "a text"}, {"text": "another"}])
    source = Source(task="convsearch", dataset="qrecc", path=tmp_path / "qrecc", format="reference")
    found = read_source(source, BUILTIN_TASKS["convsearch"], 0)
    assert [found.queries[split][0]["positive_ids"] for split in ("train", "test")] == [["0"], ["0"]]


def test_dashboard_of_jobs_shows_metrics_that_jobs_have():
    text = (ROOT / "docs" / "grafana-jobs.json").read_text(encoding="utf-8")
    own = set(re.findall(r"ray_(embedder_\w+)", text))
    assert own == {metrics.DONE, metrics.TOTAL}
