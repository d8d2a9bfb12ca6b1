"""Messages of libraries with a secret in them, through real loggers and handlers into a file."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray  # noqa: F401 - installs its own factory of records, which ours must leave at work
from ray._common.formatters import JSONFormatter, TextFormatter

from embedder.credentials import find_credential, masked
from embedder.run.masked_logs import mask_logs

TOKEN = "hf_" + "a1B2" * 8
PASSWORD = "open-sesame"
URI = f"https://user:{PASSWORD}@host/path"
BROKEN_URI = f"s3://user:{PASSWORD}/more@bucket"
"""A slash in a password, which a URI may not have."""
FORMATTERS = {
    "plain": logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"),
    "Ray's text": TextFormatter(),
    "Ray's JSON": JSONFormatter(),
}


@pytest.fixture(params=FORMATTERS)
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[logging.Logger, Path]]:
    """The logger of a library, and the file that it ends in."""
    mask_logs()
    handler = logging.FileHandler(tmp_path / "worker.log")
    handler.setFormatter(FORMATTERS[request.param])
    logger = logging.getLogger("urllib3.connectionpool")
    logger.addHandler(handler)
    yield logger, tmp_path / "worker.log"
    logger.removeHandler(handler)
    handler.close()


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        (f"token {TOKEN} is not valid", ()),
        ("connection to %s broken after %d tries", (URI, 3)),
        ("%(url)s", ({"url": BROKEN_URI},)),
        ("%s", (ValueError(f"cannot read {URI}"),)),
        ("GET %s", (f"/bucket/a?X-Amz-Signature={PASSWORD}&x=1",)),
    ],
)
def test_log_file_holds_no_secret_of_a_message(log, message, arguments):
    logger, file = log
    logger.warning(message, *arguments)
    written = file.read_text(encoding="utf-8")
    assert "***" in written
    assert PASSWORD not in written and TOKEN not in written


def test_log_file_holds_no_secret_of_a_traceback(log):
    logger, file = log
    try:
        try:
            raise OSError(f"{URI} does not answer")
        except OSError as error:
            raise RuntimeError("not uploaded") from error
    except RuntimeError:
        logger.exception("upload failed")
    written = file.read_text(encoding="utf-8")
    assert "upload failed" in written and "RuntimeError: not uploaded" in written and "does not answer" in written
    assert PASSWORD not in written


def test_log_file_holds_a_message_without_a_secret_as_it_is(log):
    logger, file = log
    logger.warning("wrote %d rows to %s", 3, "s3://bucket/path?x=1", extra={"stage": "label"})
    written = file.read_text(encoding="utf-8")
    assert "wrote 3 rows to s3://bucket/path?x=1" in written
    if written.startswith("{"):
        line = json.loads(written)
        assert line["stage"] == "label" and line["timestamp_ns"] > 0
        assert line.keys() <= {
            *("asctime", "levelname", "message", "filename", "lineno", "process", "stage", "timestamp_ns")
        }


def test_log_record_of_a_wrong_format_raises_nothing(log, capsys):
    """Logging itself tells it on stderr, and the caller goes on."""
    logger, _ = log
    (handler,) = (one for one in logger.handlers if isinstance(one, logging.FileHandler))
    # By one handler alone, because those of pytest raise.
    handler.handle(logger.makeRecord(logger.name, logging.WARNING, __file__, 1, "%d rows", ("three",), None))
    assert "TypeError" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["ray_jobs", "serve.deployments"])
def test_package_that_workers_import_masks_what_they_log(package, tmp_path):
    code = (
        "import logging, sys, importlib; importlib.import_module(sys.argv[1]);"
        "logging.basicConfig(filename=sys.argv[2]); logging.getLogger('fsspec').warning('cannot open %s', sys.argv[3])"
    )
    file = tmp_path / "log"
    subprocess.run([sys.executable, "-c", code, package, file, URI], check=True)
    assert file.read_text(encoding="utf-8") == "WARNING:fsspec:cannot open https://***@host/path\n"


def test_mask_of_a_uri_leaves_out_no_way_to_write_one():
    """Every text in which user and password are masked has both signs by which `masked` is quick for the others."""
    for text in (URI, BROKEN_URI, "gs://a@b", "x://:p@h", "http://u@h"):
        assert "://" in text and "@" in text and masked(text) != text
    assert find_credential(BROKEN_URI) is None  # so that asking it first would not do
