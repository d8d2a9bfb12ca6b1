"""Some texts of a bundle with the vectors that its index holds of them.

They tell whether vectors in another number format may meet those of the index: of one model float32, bfloat16 and int8
give vectors that are near each other, and how near depends on the model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from embedder.config.paths import EncodingDtype
from embedder.errors import BundleError
from embedder.index.bundle import Manifest
from embedder.index.manifest import REMEDY

PROBE = "probe.json"
TEXTS = 64
LEAST_COSINE = 0.999
"""Least cosine of any probe text's vector to that of the index."""
DIGITS = 6
"""Decimals of the components that are kept; the cosine needs three."""


class Probe(BaseModel):
    """N texts with their instruction, and their vectors (N, D)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    texts: list[str]
    vectors: list[list[float]]


def write_probe(texts: list[str], vector_ND: np.ndarray, bundle: Path) -> None:
    """Put texts and vectors into a bundle."""
    probe = Probe(texts=texts, vectors=np.round(vector_ND.astype(np.float64), DIGITS).tolist())
    (bundle / PROBE).write_text(probe.model_dump_json(), encoding="utf-8")


def check_probe(
    bundle: Path, manifest: Manifest, dtype: EncodingDtype, encode: Callable[[list[str]], np.ndarray]
) -> None:
    """Refuse to serve an index by an encoder whose number format, or form of it, moves its vectors too far.

    Args:
        encode: Gives the unit vectors of texts by the encoder as it is loaded in `dtype`.

    Raises:
        BundleError: the probe is missing or damaged, or a vector is farther than `LEAST_COSINE` from that of the index.
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
    manifest.check_files(bundle, only=PROBE)
    try:
        probe = Probe.model_validate_json((bundle / PROBE).read_bytes())
    except ValidationError as error:
        raise BundleError(f"{bundle / PROBE}: no probe ({error.errors()[0]['msg']}); {REMEDY}") from error
    found_ND, index_ND = encode(probe.texts), np.asarray(probe.vectors)
    cosine_N = (found_ND * index_ND).sum(1) / np.linalg.norm(index_ND, axis=1)
    # Written as `not >=`, so that NaN fails.
    if not cosine_N.min() >= LEAST_COSINE:
        raise BundleError(
            f"{bundle}: in {dtype} the least cosine of {len(probe.texts)} texts to its vectors, which are "
            f"{manifest.dtype}, is {cosine_N.min():.4f}, and {LEAST_COSINE} is asked; {remedy}"
        )
