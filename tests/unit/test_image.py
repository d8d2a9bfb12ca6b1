"""The Dockerfile as far as it can be judged without Docker: a linter, pins, the user, and what is sent to the build."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from embedder.credentials import SECRET_FILES

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_dockerfile_passes_its_linter():
    linter = Path(sys.executable).with_name("hadolint")
    checked = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_image_has_the_versions_of_the_project():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for found, pinned in [
        (r"rayproject/ray:([0-9.]+)-py311-\$\{DEVICE\}", r'"ray\[.*\]==([0-9.]+)"'),
        (r"torch==([0-9.]+)", r'"torch==([0-9.]+)"'),
    ]:
        assert set(re.findall(found, DOCKERFILE)) == set(re.findall(pinned, project)) != set()


def test_image_stands_on_a_digest_that_the_build_must_be_given():
    assert re.findall(r"^FROM (.*)$", DOCKERFILE, re.MULTILINE) == ["rayproject/ray:2.60.0-py311-${DEVICE}@${DIGEST}"]
    assert "\nARG DIGEST\n" in DOCKERFILE


def test_image_build_is_sent_no_credential():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = max(i for i, line in enumerate(ignored) if line.startswith("!"))
    # After the folders that are sent, because the last line that fits counts.
    assert {f"**/{name}" for name in SECRET_FILES} - {"**/.config"} <= set(ignored[kept:])


def test_image_does_not_run_as_root():
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == ["1000"]


@pytest.mark.parametrize("instruction", ["ARG", "ENV"])
def test_image_is_given_no_secret(instruction):
    given = re.findall(rf"^{instruction} (.*(?:\\\n.*)*)$", DOCKERFILE, re.MULTILINE)
    assert given and not re.search(r"(?i)key|secret|password|_token", " ".join(given))


def test_image_build_is_sent_what_it_copies():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    copied = re.findall(r"^COPY --chown=1000:100 (.*) \S+$", DOCKERFILE, re.MULTILINE)
    assert "*" in ignored and {name for line in copied for name in line.split()} == sent
    assert all((ROOT / name).exists() for name in sent)
