"""What looks like a credential, by name and by value: nothing of it is uploaded, printed or kept.

Used by all that reads settings, submits, copies models, prints errors and writes reports. A name or value that looks
like one and is none costs its user another name; one that is missed is read by everybody who sees a dashboard.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

SHAPES: dict[str, str] = {
    "a private key": r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----(?:[\s\S]*?-----END [A-Z0-9 ]*PRIVATE KEY-----)?",
    "an AWS key": r"(?:AKIA|ASIA)[0-9A-Z]{16}",
    "a Hugging Face token": r"(?:hf_|api_org_)[A-Za-z0-9]{20,}",
    "a GitHub token": r"(?:gh[oprsu]_|github_pat_)[A-Za-z0-9_]{20,}",
    "a GitLab token": r"gl(?:pat|dt|rt|cbt|ptt)-[\w-]{20,}",
    "a Slack token": r"xox[abeoprs]-[A-Za-z0-9-]{10,}|hooks\.slack\.com/services/[\w/]{20,}",
    "a Google key": r"AIzaSy[\w-]{33}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}",
    "an API key": (
        r"sk-[\w-]{20,}|[prs]k_(?:live|test)_[0-9A-Za-z]{16,}|gsk_[A-Za-z0-9]{30,}|r8_[A-Za-z0-9]{30,}|"
        r"nvapi-[\w-]{20,}|pa-[\w-]{40,}|xai-[A-Za-z0-9]{40,}|tgp_v1_[\w-]{30,}|wandb_v1_[\w-]{20,}|"
        r"SG\.[\w-]{16,}\.[\w-]{16,}|dapi[0-9a-f]{32}|do[opr]_v1_[0-9a-f]{64}|hv[bs]\.[\w-]{20,}"
    ),
    "a package registry's token": r"npm_[A-Za-z0-9]{30,}|pypi-[\w-]{30,}",
    "a storage account's key": r"(?:AccountKey|SharedAccessKey|SharedAccessSignature)=[\w+/=%&.-]{20,}",
    "a JSON web token": r"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*",
    "an Authorization header": r"(?i:\b(?:bearer|basic) )(?=[^\s'\"]*[0-9])[\w.~+/-]{16,}=*",
}
"""Values that are nothing else, wherever they stand."""
STARTS = r"(?:(?<![\w+])|(?<=\\[nrt]))"
"""Where a value may begin: not within a word, but after a line break or tab that is written as an escape."""
ANY_SHAPE = re.compile(rf"{STARTS}(?:{'|'.join(SHAPES.values())})")

URI_USER = re.compile(r"://(?:[^\s'\"/@]*:[^\s'\"]*|[^\s'\"/?#]*)@|(?<=s3)://[^\s'\"]*@|(?<=gs)://[^\s'\"]*@")
"""User and password of a URI, malformed ones too: what a slash or a second @ cuts in two is no less secret."""
RUN = re.compile(r"[^\s'\"]+")
"""What such a URI lies in as a whole."""
URI_PASSWORD = re.compile(
    r"://[^\s'\"/@:()\[\]{}<>]*:(?!\*\*\*@)[^\s'\"/@()\[\]{}<>]+@|(?<=http)s?://(?!\*\*\*@)[^\s'\"/?#@()\[\]{}<>]+@"
)
URI_PARAMETER = re.compile(
    r"(?i)([?&;](?:[\w.%-]*(?:passw|secret|signature|credential|(?:key|token|auth)(?![a-z]))[\w.%-]*|sig|pwd|pass)=)"
    r"(?!\*\*\*)[^&\s'\"]+"
)
"""Secret parameters of a URI, and the signatures of presigned ones."""

SECRET_NAME = re.compile(
    r"(?i)passw|passphrase|secret|credential|private|bearer|authoriz|api_?key|token(?!iz)|cookie|jwt|"
    r"(?<![a-z])(?:keys?|pwd|pw|creds?|dsn|sas|sig|signature|netrc)(?![a-z])|(?:key|pwd|pass|auth)$|"
    r"(?<![a-z])pat$"
)
"""Names of environment variables whose values are secret."""
ASSIGNMENT = re.compile(
    r"(?im)(?:^|[{,;])[^\S\n]*(?:export +)?[\"'-]?[ ]?[\w.-]*"
    r"(?:passw(?:or)?d|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|auth)[\"']?"
    r"[^\S\n]*[:=][^\S\n]*[\"']?(?![<\[{$*~./]|none|null|true|false|your|change|example|[0-9]+\b)[^\s\"',;]{8,}"
)
"""A line of a file of settings that gives a secret name a value."""
SERVICE_KEY = re.compile(r"(?m)^[^\S\n]*(?:read|write|admin)\s+(?=\S*[0-9])[\w.:$/+=-]{16,}")
"""A line of a file of this service's API keys."""
PLACEHOLDER = "KEY:SECRET"
"""What stands for user and password in explanations."""

SECRET_FILES = (
    *(".env", ".env.*", "*.env", ".envrc", "keys", "*keys.txt", "api_keys*", "api-keys*", "auth_token", "*.token"),
    *("token", "tokens.txt", "*password*", "*passwd*", "secret", "secrets", "*.secret", "credentials", ".config"),
    *(
        f"{name}.{end}"
        for name in ("credentials", "secret", "secrets")
        for end in ("json", "yaml", "yml", "toml", "ini")
    ),
    *("*credential*.json", "*secret*.txt", "service?account*.json", "client_secret*.json", "gcloud", "kubeconfig"),
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx", "*.keytab", "*.ppk", "*.gpg", "*.asc", "*.kubeconfig"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc", "_netrc", ".pgpass", ".my.cnf", ".htpasswd"),
    *(".npmrc", ".pypirc", ".git-credentials", ".vault-token", ".aws", ".azure", ".docker", ".gnupg", ".kube", ".ssh"),
)
"""Names of files and folders that hold credentials, as in .gitignore; none may fit a module of this project."""
CODE = {".py", ".pyi", ".pyx", ".ipynb", ".js", ".ts", ".html", ".css", ".md", ".rst", ".j2", ".c", ".cpp", ".h"}
"""Files in which a name before a value need not be that of a setting."""
DATA = {".parquet", ".arrow", ".faiss", ".safetensors", ".npy", ".jsonl", ".gguf", ".onnx"}
LARGEST_READ = 4 * 2**20
"""Bytes; a larger file is data, whose name alone is looked at."""


def is_secret(name: str, value: str) -> bool:
    """Tell whether an environment variable is one by its name or by its value; `MAX_TOKENS=512` is a count."""
    is_count = name.lower().endswith("s") and value.isdecimal()
    return (SECRET_NAME.search(name) is not None and not is_count) or find_credential(value) is not None


def find_credential(text: str) -> str | None:
    """What kind of credential a text holds, None if there is none."""
    if ANY_SHAPE.search(text):
        return next(kind for kind, shape in SHAPES.items() if re.search(rf"{STARTS}(?:{shape})", text))
    if any(PLACEHOLDER not in match[0].upper() for match in URI_PASSWORD.finditer(text)):
        return "a URI with a user or password"
    return "a signed URI" if URI_PARAMETER.search(text) else None


def masked(text: str) -> str:
    """A text in which no credential can be read, not even in a malformed URI."""
    # Asked first, because every log message comes by here, and few have a URI.
    if "://" in text and "@" in text:
        text = RUN.sub(_without_user, text)
    text = URI_PARAMETER.sub(r"\1***", text)
    return ANY_SHAPE.sub("***", text)


def masked_texts(value: object) -> object:
    """A value that JSON can hold, in whose texts and names no credential can be read.

    Before it is written as JSON: in the written form a credential may end in an escape, or begin behind one.
    """
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {masked_texts(name): masked_texts(inner) for name, inner in value.items()}
    return [masked_texts(inner) for inner in value] if isinstance(value, list | tuple) else value


def _without_user(run: re.Match[str]) -> str:
    # Nothing is sought behind the last @: a long URI without one would be walked through from each of its colons.
    before, at, after = run[0].rpartition("@")
    return URI_USER.sub("://***@", before + at) + after


def is_secret_file(path: PurePath) -> bool:
    """Tell whether a relative path is by a name in it that of a file with credentials.

    Tables and weights never are, and a source file only by a folder that it lies in: these are named after anything.
    """
    if path.suffix in DATA:
        return False
    if path.suffix in CODE:
        return any(fnmatchcase(part, name) for part in path.parts[:-1] for name in SECRET_FILES)
    return any(fnmatchcase(part, name) for part in path.parts for name in SECRET_FILES)


def credential_in_file(path: Path) -> str | None:
    """What kind of credential a file holds and in which line, None if there is none; data files are passed over."""
    if path.stat().st_size > LARGEST_READ:
        return None
    content = path.read_bytes()
    if b"\0" in content:
        return None
    text = content.decode("utf-8", "replace")
    for number, line in enumerate(text.splitlines(), start=1):
        kind = find_credential(line)
        if kind is None and path.suffix not in CODE:
            kind = "a secret setting" if ASSIGNMENT.search(line) else None
            kind = "a key of the service" if SERVICE_KEY.search(line) else kind
        if kind is not None:
            return f"{kind} in line {number}"
    return None
