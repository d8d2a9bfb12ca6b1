"""Rules of the source, one test each that lists what breaks it, and what every job's command line has in common."""

from __future__ import annotations

import ast
import importlib
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from ray_jobs.cluster.session import Job, make_parser

ROOT = Path(__file__).parents[2]
PACKAGES = ("embedder", "ray_jobs", "serve")
FILES = sorted(path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
DOCS = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "kubernetes/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
JOBS = ("prepare", "questions", "mine", "label", "train", "index", "evaluate", "pipeline")

UNSAFE = ("pickle", "dill", "cloudpickle", "joblib")
FORBIDDEN = {
    "embedder": {"ray", "ray_jobs", "serve", "fastapi", "starlette", "uvicorn", "tests", "benchmarks", *UNSAFE},
    "ray_jobs": {"serve", "fastapi", "starlette", "uvicorn", "tests", "benchmarks", *UNSAFE},
    "serve": {"ray_jobs", "tests", "benchmarks", *UNSAFE},
}
DEEPSPEED = "embedder/training/deepspeed_engine.py"

FRAGMENT = re.compile(r"(Of|As|By|At|With|Whether|Where|Those|That|What|Which|From|In|For)\b")
ARCHAIC = re.compile(
    r"\b(mend(s|ed|ing)?|dear(est|er)?|spells? the|thither|hither|beheld|wherein|thereof|whence)\b", re.IGNORECASE
)


@cache
def text_of(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(text_of(path), str(path))


@cache
def imports_of(path: Path) -> set[str]:
    """Dotted names of all modules a file imports, wherever in the file; `from a import b` gives a and a.b."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            names |= {start, *(f"{start}.{alias.name}" for alias in node.names)}
    return names


def module_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def definitions(path: Path) -> Iterable[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, kinds)]


def circle_of(graph: dict[str, set[str]]) -> list[str]:
    """One circle of the graph as a line, if there is any."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return ["circle: " + " <- ".join(error.args[1])]
    return []


def refuse(wrong: list[str]) -> None:
    """Fail with all lines, which pytest would cut."""
    assert not wrong, "\n" + "\n".join(wrong)


def test_imports_go_one_way():
    assert "embedder.config.tasks" in imports_of(Path("embedder/config/run.py"))
    wrong = []
    for path in FILES:
        names = imports_of(path)
        wrong += [f"{path} imports {name}" for name in names if name.split(".")[0] in FORBIDDEN[path.parts[0]]]
        wrong += [f"{path} imports {name} relatively" for name in names if name.startswith(".")]
        if "deepspeed" in names and path != Path(DEEPSPEED):
            wrong.append(f"{path} imports deepspeed, which only {DEEPSPEED} may")
        if path != Path("ray_jobs/pipeline.py"):
            jobs = {f"ray_jobs.{job}" for job in JOBS} - {module_of(path)}
            wrong += [f"{path} imports the job {name}" for name in names & jobs]
    refuse(wrong)


def test_imports_have_no_circle():
    """Neither do those of files anywhere, nor those of the folders of embedder/."""
    modules = {module_of(path): path for path in FILES}
    files = {name: (imports_of(path) & modules.keys()) - {name} for name, path in modules.items()}
    folders: dict[str, set[str]] = defaultdict(set)
    for name, imported in files.items():
        own = folder_of(name)
        if name.startswith("embedder."):
            folders[own] |= {folder_of(other) for other in imported if other != "embedder"} - {own}
    refuse(circle_of(files) + circle_of(folders))


def folder_of(module: str) -> str:
    """Two parts of a name: embedder.config of embedder.config.run, and embedder.errors."""
    return ".".join(module.split(".")[:2])


def test_models_are_loaded_without_code_of_their_own():
    """Whoever loads by transformers says so in the call, so that nobody is asked whether such code may run."""
    calls = [
        (path, node)
        for path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"from_pretrained", "from_config"}
    ]
    assert len(calls) >= 5
    wrong = []
    for path, node in calls:
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        said = given.get("trust_remote_code")
        if not (isinstance(said, ast.Constant) and said.value is False):
            wrong.append(f"{path}:{node.lineno} does not say trust_remote_code=False")
    refuse(wrong)


def test_devices_are_given():
    """No model is loaded without a device that the caller names, and nobody looks for a GPU of his own."""
    loads = [
        (path, node, names, len(node.args.defaults))
        for path in FILES
        for node in definitions(path)
        if isinstance(node, ast.FunctionDef) and "device" in (names := [each.arg for each in node.args.args])
    ]
    assert {"load_lm", "load_encoder", "load_inference_encoder", "load_cross_encoder"} <= {
        node.name for _, node, *_ in loads
    }
    wrong = [
        f"{path}:{node.lineno} {node.name} may be called without a device"
        for path, node, names, defaults in loads
        if names.index("device") >= len(names) - defaults
    ]
    # The rehearsal of `label --dry-run` takes the CPU of a machine that has no GPU, and says so.
    found = re.compile(r"cuda\.is_available\(|get_num_gpus|cuda\.device_count\(")
    # What was given is compared with what is there in one place.
    once = ["ray_jobs/labelling/rehearsal.py", "embedder/index/faiss_index.py", "embedder/models/device.py"]
    allowed = dict.fromkeys(once, 1)
    for path in FILES:
        count = len(found.findall(text_of(path)))
        if count > allowed.get(str(path), 0):
            wrong.append(f"{path} looks for a GPU, {count} times")
    refuse(wrong)


def test_files_and_functions_are_short_and_documented():
    wrong = []
    for path in FILES:
        lines = len(text_of(path).splitlines())
        wrong += [f"{path} has {lines} lines, 400 are the most"] if lines > 400 else []
        wrong += [] if ast.get_docstring(tree_of(path)) else [f"{path} does not say what it holds"]
        for node in definitions(path):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if not isinstance(node, ast.ClassDef) and lines > 60:
                wrong.append(f"{path}: {node.name} has {lines} lines, 60 are the most")
    refuse(wrong)


def test_packages_name_their_files():
    """The docstring of each package tells what is in each of its files."""
    wrong = []
    for path in FILES:
        package = path.parent / "__init__.py"
        if not path.name.startswith("__"):
            told = ast.get_docstring(tree_of(package)) if package in FILES else None
            wrong += [] if re.search(rf"\b{path.stem}\b", told or "") else [f"{package} does not name {path.name}"]
    refuse(wrong)


def test_names_stand_for_one_thing():
    """The same file name is there twice only for a command and its settings."""
    files: dict[str, list[str]] = defaultdict(list)
    classes: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        if not path.name.startswith("__"):
            files[path.stem].append(path.as_posix())
        for node in definitions(path):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(path.as_posix())
    repeated_files = [
        f"{stem}: {', '.join(paths)}"
        for stem, paths in files.items()
        if len(paths) > 1 and paths != [f"embedder/config/{stem}.py", f"ray_jobs/{stem}.py"]
    ]
    repeated_classes = [f"class {name}: {', '.join(paths)}" for name, paths in classes.items() if len(paths) > 1]
    refuse(repeated_files + repeated_classes)


def test_words_are_plain():
    """No archaic word in source and docs; no short docstring that is a fragment of a sentence."""
    assert len(DOCS) > 5
    wrong = [
        f"{path}:{number} {match[0]}"
        for path in (*FILES, *DOCS)
        for number, line in enumerate(text_of(path).splitlines(), 1)
        for match in ARCHAIC.finditer(line)
    ]
    for path in FILES:
        for node in definitions(path):
            told = ast.get_docstring(node) or ""
            if FRAGMENT.match(told) and len(told.split()) < 9:
                wrong.append(f"{path}:{node.lineno} {told.splitlines()[0]}")
    refuse(wrong)


@pytest.mark.parametrize("stage", JOBS)
def test_jobs_take_the_same_three_options(stage):
    job = importlib.import_module(f"ray_jobs.{stage}").JOB
    assert isinstance(job, Job)
    assert job.stage == stage
    parser = make_parser(job)
    options = {option for action in parser._actions for option in action.option_strings}
    # A sample is a dry run, which only labelling has to offer.
    assert options == {"-h", "--help", "--config", "--set", "--dry-run", *(["--sample"] if job.sample else [])}
    assert bool(job.sample) == (stage == "label")
    assert all(action.option_strings for action in parser._actions)
    given = parser.parse_args(["--config", "run.yaml", "--set", "a.b=1", "--set", "c=2", "--dry-run"])
    assert (given.config, given.set, given.dry_run) == ("run.yaml", ["a.b=1", "c=2"], True)


@pytest.mark.parametrize("stage", JOBS)
def test_jobs_say_in_their_manual_what_they_do(stage):
    job = importlib.import_module(f"ray_jobs.{stage}").JOB
    assert f"python -m ray_jobs.{stage}" in make_parser(job).format_help()
    assert len(job.manual.split()) > 10
