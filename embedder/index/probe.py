"""Some texts of a bundle with the vectors that its index holds of them.

They tell whether an encoder that runs is the one of the index: whether its vectors may meet those of the index, and
whether it ranks texts as the index does. Of one model float32, bfloat16 and int8 give vectors that are near each other,
and how near depends on the model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embedder.config.paths import EncodingDtype
from embedder.errors import BundleError, ProbeError
from embedder.index.bundle import Manifest
from embedder.index.manifest import REMEDY
from embedder.storage.object_store import AnyPath

PROBE = "probe.json"
TEXTS = 64
LEAST_COSINE = 0.999
"""Least cosine of any probe text's vector to that of the index."""
DIGITS = 6
"""Decimals of the components that are kept; the cosine needs three."""
ASKED = 16
"""Texts that a replica is asked for before an alias moves: a few batches."""
RANKS = 5
"""Nearest texts of each that are compared."""
TIE = 0.01
"""Texts whose scores differ by no more may change places: bfloat16 moves a score by 0.008 at most."""


class Probe(BaseModel):
    """N texts with their instruction, and their vectors (N, D)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    texts: Annotated[list[str], Field(min_length=1)]
    vectors: Annotated[list[list[float]], Field(min_length=1)]

    @property
    def asked(self) -> list[int]:
        """The texts that stand for all, ASKED at most."""
        return list(range(0, len(self.texts), -(-len(self.texts) // ASKED)))


def write_probe(texts: list[str], vector_ND: np.ndarray, bundle: Path) -> None:
    """Put texts and vectors into a bundle."""
    probe = Probe(texts=texts, vectors=np.round(vector_ND.astype(np.float64), DIGITS).tolist())
    (bundle / PROBE).write_text(probe.model_dump_json(), encoding="utf-8")


def read_probe(bundle: Path, manifest: Manifest) -> Probe:
    """The probe of a bundle that has one.

    Raises:
        BundleError: it is damaged.
    """
    manifest.check_files(bundle, only=PROBE)
    try:
        return Probe.model_validate_json((bundle / PROBE).read_bytes())
    except ValidationError as error:
        raise BundleError(f"{bundle / PROBE}: no probe ({error.errors()[0]['msg']}); {REMEDY}") from error


def check_probe(
    bundle: Path, manifest: Manifest, dtype: EncodingDtype, encode: Callable[[list[str]], np.ndarray]
) -> None:
    """Refuse to serve an index by an encoder whose number format, or form of it, moves its vectors too far.

    Args:
        encode: Gives the unit vectors of texts by the encoder as it is loaded in `dtype`.

    Raises:
        ProbeError: a vector is farther than `LEAST_COSINE` from that of the index.
        BundleError: the probe is missing or damaged.
    """
    # The same format has two forms: a GPU and a CPU compute differently in bfloat16.
    remedy = "make and serve it on GPUs, or both on CPUs"
    if dtype != manifest.dtype:
        remedy = f"set serve.dtype to null, or encoder.dtype to {dtype} and run `python -m ray_jobs.index`"
    if PROBE not in manifest.files:
        raise BundleError(
            f"{bundle}: it is served in {dtype}, its vectors are {manifest.dtype}, and it has no {PROBE} to compare "
            "them by; build it again"
        )
    probe = read_probe(bundle, manifest)
    least = _least_cosine(encode(probe.texts), _unit(probe.vectors))
    # Written as `not >=`, so that NaN fails.
    if not least >= LEAST_COSINE:
        raise ProbeError(
            f"{bundle}: in {dtype} the least cosine of {len(probe.texts)} texts to its vectors, which are "
            f"{manifest.dtype}, is {least:.4f}, and {LEAST_COSINE} is asked; {remedy}"
        )


def check_ranks(bundle: AnyPath, probe: Probe, found_ND: np.ndarray) -> None:
    """Refuse to let an alias move to an index whose texts the service encodes or ranks otherwise than the index.

    Args:
        found_ND: The vectors of the `asked` texts by the encoder of the service, as it answers requests.

    Raises:
        ProbeError: a vector is too far from that of the index, or a text has other nearest texts.
    """
    index_ND, asked = _unit(probe.vectors), probe.asked
    least = _least_cosine(found_ND, index_ND[asked])
    offline_NM, found_NM = index_ND[asked] @ index_ND.T, found_ND @ index_ND.T
    differing = 0
    for own, offline_M, found_M in zip(asked, offline_NM, found_NM, strict=True):
        others = np.delete(np.arange(len(index_ND)), own)
        # By the scores of offline: those of texts that stand equally near may change places.
        wanted = np.sort(offline_M[others])[::-1][:RANKS]
        given = offline_M[others[np.argsort(-found_M[others], kind="stable")[:RANKS]]]
        differing += bool(np.abs(wanted - given).max(initial=0.0) > TIE)
    if differing or not least >= LEAST_COSINE:
        raise ProbeError(
            f"{bundle}: asked for {len(asked)} texts of the index, the service gives {differing} of them other nearest "
            f"texts than offline, and the least cosine to their vectors is {least:.4f} ({LEAST_COSINE} is asked); its "
            "encoder is not the one that made this index: build the index again, or look at what differs in the service"
        )


def _unit(vectors: list[list[float]]) -> np.ndarray:
    vector_ND = np.asarray(vectors)
    return np.asarray(vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True))


def _least_cosine(found_ND: np.ndarray, index_ND: np.ndarray) -> float:
    return float((found_ND * index_ND).sum(1).min())
