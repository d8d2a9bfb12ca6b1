"""What is served in the benchmark: passages of qa/nq under an encoder, as versions of a run's index."""

from __future__ import annotations

import hashlib
import random
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from benchmarks.real_data import find_data, read_rows
from embedder.config.index import BuildSettings
from embedder.config.run import EncoderConfig
from embedder.errors import BundleError
from embedder.index.bundle import MODEL, Manifest, TaskInstructions, shard_folder, verify
from embedder.index.catalog import Catalog
from embedder.index.collection import CollectionIdentity, sort_by_name, write_collection
from embedder.index.documents import PAYLOAD
from embedder.index.faiss_index import empty_vectors
from embedder.index.manifest import hash_files
from embedder.models.encoder import encode_prompted
from embedder.models.fingerprint import model_fingerprint
from embedder.models.locate import locate_model
from embedder.models.onnx import load_inference_encoder

Row = dict[str, Any]
TASK = "qa"
ALIAS = "live"
MAX_TOKENS = 256
PASSAGES = 1000


class Texts:
    """Seeded texts: short, long and mixed."""

    def __init__(self, data: Path | None = None) -> None:
        """Read qa/nq.

        Raises:
            SystemExit: it is not there.
        """
        found = find_data(data)
        if found is None:
            raise SystemExit("no data: shared/data/qa/nq is neither in nor beside the repository; name it by --data")
        rows = read_rows(found / "qa" / "nq" / "corpus.jsonl")
        random.Random(0).shuffle(rows)
        self.passages = rows[:PASSAGES]
        questions = [row["query"] for row in read_rows(found / "qa" / "nq" / "test.jsonl")]
        words = " ".join(row["text"] for row in rows[:800]).split()
        self.short = [
            " ".join([*question.split(), *words[9 * i : 9 * i + 20]][:15]) for i, question in enumerate(questions[:300])
        ]
        """About 20 tokens with those at the ends: a question, filled up to 15 words."""
        self.long = [" ".join(words[i * 185 : (i + 1) * 185]) for i in range(100)]
        """About 250 tokens."""
        lengths = random.Random(1).choices(range(10, 190), k=300)
        self.mixed = [" ".join(words[7 * i : 7 * i + length]) for i, length in enumerate(lengths)]
        """16 to 256 tokens."""


def write_version(catalog: Catalog, version: str, model: Path, rows: Sequence[Row], vector_PD: np.ndarray) -> None:
    """Write passages as a version with one shard."""
    folder = catalog.here(version)
    shutil.copytree(model, folder / MODEL)
    payload = pa.Table.from_pylist(
        [
            {"metadata": None, "dataset": "nq"} | {name: row.get(name) for name in ("id", "text", "title")}
            for row in rows
        ],
        schema=PAYLOAD,
    )
    order = sort_by_name(payload)
    flat, view = empty_vectors(*vector_PD.shape)
    view[:] = vector_PD[order]
    dimension = vector_PD.shape[1]
    fingerprint = model_fingerprint(folder / MODEL, {"pooling": "mean", "max_tokens": MAX_TOKENS})
    place = CollectionIdentity(task=TASK, shard=0, num_shards=1, encoder_fingerprint=fingerprint, dimension=dimension)
    part = shard_folder(folder, 0) / TASK
    part.mkdir(parents=True)
    write_collection(part, payload.take(pa.array(order)), flat, place, BuildSettings())
    manifest = Manifest(
        name="minilm",
        encoder_fingerprint=fingerprint,
        pooling="mean",
        max_tokens=MAX_TOKENS,
        dimension=dimension,
        tasks={TASK: TaskInstructions(query="", passage="")},
        collections={TASK: len(rows)},
        num_shards=1,
        files=hash_files(folder),
    )
    manifest.write(folder)


def prepare(work: Path, model: str, texts: Texts) -> str:
    """Two versions of the same passages, of which `live` names the first; returns a key of all roles."""
    catalog = Catalog(work / "indexes")
    if not _are_there(catalog):
        shutil.rmtree(work / "indexes", ignore_errors=True)
        located = locate_model(model)
        assert isinstance(located, Path), f"{model}: no folder"
        config = EncoderConfig(model=str(located), pooling="mean", max_tokens=MAX_TOKENS, instructions=False)
        titled = [f"{row.get('title') or ''} {row['text']}".strip() for row in texts.passages]
        vector_PD = encode_prompted(load_inference_encoder(config, "cpu"), titled)
        write_version(catalog, "v1", located, texts.passages, vector_PD)
        half = PASSAGES // 2
        write_version(catalog, "v2", located, texts.passages[:half], vector_PD[:half])
    # What an earlier run has made of its writes, perhaps by a version of this program whose format is another one.
    shutil.rmtree(catalog.states, ignore_errors=True)
    catalog.point(ALIAS, "v1")
    keys = work / "keys"
    key = keys.read_text(encoding="utf-8").split()[1] if keys.exists() else secrets.token_hex(16)
    keys.write_text(f"admin {key}\nadmin {attackers_key(key)}\n", encoding="utf-8")
    return key


def attackers_key(key: str) -> str:
    """The key of all roles that attackers have, beside the one of honest clients."""
    return hashlib.sha256(key.encode()).hexdigest()


def _are_there(catalog: Catalog) -> bool:
    """Whether an earlier run has left both versions, and this code can read them."""
    try:
        return set(catalog.versions()) == {"v1", "v2"} and all(verify(catalog.here(one)) for one in ("v1", "v2"))
    except BundleError:
        return False


def write_run(work: Path, model: str, serve: dict[str, Any], name: str = "run.yaml") -> Path:
    """The run file of a service over those versions."""
    run = {
        "paths": {"work": str(work), "cache": str(work / "cache")},
        "encoder": {"model": model, "pooling": "mean", "max_tokens": MAX_TOKENS, "instructions": False},
        "serve": {"api_keys_file": str(work / "keys"), **serve},
    }
    path = work / name
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    return path
