"""What is installed with the project: ranges that the lock file's versions lie in, and the few exact versions."""

from __future__ import annotations

from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = [Requirement(line) for line in PROJECT["dependencies"]]
EXACT = {"torch", "ray", "deepspeed"}
EXTRAS = ("dev", "docs", "aws", "gcp", "mcp", "langchain", "llama-index", "haystack")


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def test_only_what_must_be_one_version_is_pinned():
    exact = {need.name for need in NEEDED if str(need.specifier).startswith("==")}
    assert exact == EXACT
    assert all(">=" in str(need.specifier) for need in NEEDED if need.name not in EXACT)


def test_lock_file_has_every_package_that_is_needed_in_a_version_that_fits():
    versions = locked()
    extras = [Requirement(line) for name in EXTRAS for line in PROJECT["optional-dependencies"][name]]
    wrong = [
        f"{need}: {versions.get(canonicalize_name(need.name), 'missing')}"
        for need in [*NEEDED, *extras]
        if need.name != "torch" and versions.get(canonicalize_name(need.name), "") not in need.specifier
    ]
    assert wrong == []


def test_make_and_the_image_install_the_versions_of_the_lock_file():
    for name in ("Makefile", "Dockerfile"):
        lines = [
            line
            for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
            if "install" in line and " -e " in line
        ]
        assert lines and all("--constraint requirements.lock" in line or "oldest.txt" in line for line in lines), name
