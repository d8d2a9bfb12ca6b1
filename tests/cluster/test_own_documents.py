"""What a stranger does: installs the wheel, has a folder of documents, and reaches a served search by three commands.

The environment has no clone, no run file written by hand and no Ray.
"""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.conftest import free_port
from tests.installed import Installed, build_wheel, install
from tests.python_documents import SOUGHT, Sought, own_questions, write_documents
from tests.unit.tiny_folders import write_jsonl

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]
LONGEST_S = 600.0
"""From an empty folder to a search that answers."""


@dataclass(frozen=True)
class Stranger:
    """A person in an empty folder, with the wheel."""

    installed: Installed
    folder: Path
    ray: Path

    @property
    def environment(self) -> dict[str, str]:
        """A home and a folder for Ray of their own, or a Ray that runs on this machine would be joined."""
        home = self.folder.parent / "home"
        home.mkdir(exist_ok=True)
        return self.installed.environment(HOME=str(home), RAY_TMPDIR=str(self.ray))

    def run(self, *words: str) -> str:
        """Type a command, and read what it says."""
        done = subprocess.run(
            [self.installed.command, *words],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-3000:]} {done.stderr[-3000:]}"
        return done.stdout

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The address of the service, from the moment that it says it is ready."""
        command = [self.installed.command, "serve", "--port", str(free_port())]
        running = subprocess.Popen(
            command, env=self.environment, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert running.stdout is not None
        said: list[str] = []
        try:
            for line in running.stdout:
                said.append(line)
                if "; stop it by" in line:  # Ray says that it is ready before
                    break
            else:
                pytest.fail("".join(said))
            yield said[-1].partition(" is ready at ")[2].partition(";")[0]
            running.send_signal(signal.SIGTERM)
            assert running.wait(timeout=120) == 0
        finally:
            running.kill()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment that does not know this repository."""
    folder = tmp_path_factory.mktemp("wheel")
    return install(build_wheel(folder), folder / "venv")


@pytest.fixture
def stranger(installed: Installed, tmp_path: Path) -> Iterator[Stranger]:
    """Someone who has just installed it."""
    (tmp_path / "empty").mkdir()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as ray:
        yield Stranger(installed, tmp_path / "empty", Path(ray))


def is_found(sought: Sought, answer: str, file: str | None = None) -> bool:
    """Whether a hit names file, heading and page of what was looked for."""
    for hit in json.loads(answer)["results"][0]:
        place = hit["metadata"]
        named = place["file"] == (file or sought.file) and sought.heading in (place.get("heading") or "")
        if named and place.get("page") == sought.page:
            return True
    return False


def test_stranger_searches_ten_files_of_each_kind_after_three_commands(stranger: Stranger) -> None:
    write_documents(stranger.folder / "handbook")
    began = time.monotonic()
    stranger.run("init", "handbook", "--yes")
    stranger.run("pipeline")
    with stranger.serving() as url:
        first = stranger.run("ask", "--url", url, SOUGHT[3].query)
        seconds = time.monotonic() - began
        lost = [each for each in SOUGHT if not is_found(each, stranger.run("ask", "--json", "--url", url, each.query))]
    assert "handbook/pdf/with.pdf, page 1, with" in first and lost == []
    assert seconds < LONGEST_S
    assert not list((stranger.folder / "runs" / "handbook" / "prepared" / "rejected").glob("*"))


def test_stranger_trains_on_own_questions_about_documents(stranger: Stranger) -> None:
    write_documents(stranger.folder / "handbook")
    questions = own_questions()
    write_jsonl(stranger.folder / "asked" / "train.jsonl", questions[::2])
    write_jsonl(stranger.folder / "asked" / "test.jsonl", questions[1::2])
    stranger.run("init", "handbook/md", "--questions", "asked", "--llm", "none", "--yes")
    few = ("--set", "train.steps=4")  # the way is tried, and not what it gains
    stranger.run("pipeline", *few)
    with stranger.serving() as url:
        assert is_found(SOUGHT[1], stranger.run("ask", "--json", "--url", url, SOUGHT[1].query), file="heapq.md")
    status = json.loads(stranger.run("status", "--json", *few))
    assert status["missing"] == [] and {"train", "evaluate"} <= {each["stage"] for each in status["stages"]}
