"""Rules of the tree: who imports whom, how long things are, what every job takes, what the README shows."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from ray_jobs.cluster.session import Job, make_parser

ROOT = Path(__file__).parents[2]
PACKAGES = ("embedder", "ray_jobs", "serve")
FILES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
JOBS = ("prepare", "mine", "label", "train", "index", "evaluate", "pipeline")

FORBIDDEN = {
    "embedder": ("ray", "ray_jobs", "serve", "fastapi", "starlette", "uvicorn"),
    "ray_jobs": ("serve", "fastapi"),
    "serve": ("ray_jobs",),
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> set[str]:
    """Dotted names of all modules a file imports, wherever in the file; `from a import b` gives a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_the_tree_is_read_at_all():
    assert len(FILES) > 40
    assert "embedder.config.tasks" in imported(ROOT / "embedder" / "config" / "run.py")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    roots = {module.split(".")[0] for module in imported(path)}
    assert not roots & set(FORBIDDEN[package])
    assert not roots & {"tests", "benchmarks", "pickle", "dill", "cloudpickle", "joblib"}


@pytest.mark.parametrize("path", sorted((ROOT / "ray_jobs").rglob("*.py")), ids=name_of)
def test_no_job_imports_another_but_the_pipeline(path):
    others = {f"ray_jobs.{other}" for other in JOBS if name_of(path) != f"ray_jobs/{other}.py"}
    found = imported(path) & others
    assert found == (others if path.stem == "pipeline" else set())


def test_only_the_training_engine_knows_deepspeed():
    assert [name_of(path) for path in FILES if "deepspeed" in imported(path)] == [
        "embedder/training/deepspeed_engine.py"
    ]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short_and_modules_say_what_they_are(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno + 1 <= 60, f"{name_of(path)}: {node.name}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_functions_and_classes_have_a_docstring(path):
    """Functions within functions are details of theirs; special methods are known."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    named = [node for part in (tree, *classes) for node in part.body if isinstance(node, kinds)]
    public = [node for node in named if not node.name.startswith("_")]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("stage", JOBS)
def test_every_job_takes_the_same_three_options(stage):
    job = importlib.import_module(f"ray_jobs.{stage}").JOB
    assert isinstance(job, Job)
    assert job.stage == stage
    parser = make_parser(job)
    options = {option for action in parser._actions for option in action.option_strings}
    assert options == {"-h", "--help", "--config", "--set", "--dry-run"}
    assert all(action.option_strings for action in parser._actions)
    given = parser.parse_args(["--config", "run.yaml", "--set", "a.b=1", "--set", "c=2", "--dry-run"])
    assert (given.config, given.set, given.dry_run) == ("run.yaml", ["a.b=1", "c=2"], True)


@pytest.mark.parametrize("stage", JOBS)
def test_a_job_says_in_its_manual_what_it_does(stage):
    job = importlib.import_module(f"ray_jobs.{stage}").JOB
    assert f"python -m ray_jobs.{stage}" in make_parser(job).format_help()
    assert len(job.manual.split()) > 10
