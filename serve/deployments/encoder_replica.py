"""Deployment: the encoders of the served versions behind batches that all requests share."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from weakref import WeakValueDictionary

import numpy as np
import torch

from embedder.config.paths import EncodingDtype
from embedder.config.run import EncoderConfig
from embedder.config.serve import ServeConfig
from embedder.errors import BundleError, EmbedderError
from embedder.index.bundle import MODEL, bundle_encoder, read_manifest, verify
from embedder.index.probe import PROBE, Probe, check_probe, check_ranks, read_probe
from embedder.models.device import resolve_device
from embedder.models.encoder import TextEncoder, TokenRow, encode_prompted, encode_tokens
from embedder.models.onnx import load_inference_encoder
from embedder.run.machine import cpus
from serve.backend import Encoded, Piece, check_format
from serve.deployments.batching import Cause, NotEncodable, TokenBatcher
from serve.deployments.service_metrics import EncoderMetrics
from serve.deployments.version_cache import VersionCache
from serve.http_errors import ApiError, timed_out
from serve.versions.served import VersionSource, split_key

logger = logging.getLogger("ray.serve")

READY = "ready"
UNIT = 1e-3
"""By how much the length of a vector may differ from 1."""
UNLOAD_EVERY_S = 15.0
THREAD_TOKENS = 512
"""Tokens, padding included, that a thread of a CPU computes together, of the shortest rows of a batch first: their
intermediate results then stay in its cache."""

BATCH_TOKENS = 256
"""The same where several threads have a batch each: a batch then holds about twelve short texts, or one long one."""

LOWEST_PRIORITY = 19


def threads_together(settings: ServeConfig) -> int:
    """Threads that compute batches where a replica does all: two at least, if the machine has them."""
    return 1 if settings.gpus_per_replica else min(cpus(), max(2, int(settings.cpus_per_replica)))


@dataclass(frozen=True, eq=False)
class _Model:
    encoder: TextEncoder
    batcher: TokenBatcher


class EncoderReplica:
    """Encodes texts that have their instruction already.

    Threads beside the event loop: one makes tokens, while others compute. On a CPU as many more compute the large
    requests, behind all others on the machine: with two cores a query would else share one with them.
    """

    def __init__(self, source: VersionSource, settings: ServeConfig, deployed: str, threads: int = 1) -> None:
        """Load the encoders of the versions that are served; `deployed` is what the service was deployed with.

        `threads`: of a CPU, that each compute batches of their own. One has all the processors that Ray gives.

        Raises:
            BundleError: it is missing or altered.
            DeviceError: it was given a GPU that cannot be used.
        """
        self._device = resolve_device(settings.gpus_per_replica)
        self._threads = threads
        # Two batches on one thread each take less time than one after the other on two.
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))) if threads == 1 else 1)
        self._source, self._settings = source, settings
        self._metrics = EncoderMetrics()
        # One thread, because a tokenizer may not be used by two at once.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokens")
        self._computing = [ThreadPoolExecutor(1, thread_name_prefix="forward") for _ in range(threads)]
        self._behind = [
            ThreadPoolExecutor(1, thread_name_prefix="large", initializer=_give_way) for _ in range(threads)
        ]
        # Weak, so that the last version that is unloaded takes the model with it.
        self._shared: WeakValueDictionary[tuple[str, EncodingDtype], _Model] = WeakValueDictionary()
        self._load_lock = threading.Lock()
        self._models = VersionCache(self._load)
        self._compared: set[str] = set()
        named = dict.fromkeys(split_key(key)[1] for key in source.keys()[: settings.max_versions])
        self._models.preload(named, deployed)
        self._unloaded = time.monotonic()

    async def encode(
        self, version: str, pieces: list[Piece], truncate: bool, call_format: int = 0
    ) -> list[Encoded | ApiError]:
        """The vectors of the texts of several requests, or parts of them, by the model of a version, or why not.

        Raises:
            ApiError: the model itself is failing, or the caller is of another version of this code.
            BundleError: the version is missing or damaged.
        """
        check_format(call_format)
        arrived = time.monotonic()
        model = await self._models.get(version)
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        made = await loop.run_in_executor(
            self._tokenizing, lambda: [self._tokenized(model.encoder, piece, truncate) for piece in pieces]
        )
        tokens = sum(len(row) for rows in made if not isinstance(rows, ApiError) for row in rows)
        self._metrics.tokenized(time.perf_counter() - began, tokens, model.batcher.waiting)
        calls = [
            self._vectors(model, rows, piece, arrived + piece.seconds) for piece, rows in zip(pieces, made, strict=True)
        ]
        return list(await asyncio.gather(*calls))

    async def _vectors(
        self, model: _Model, rows: list[TokenRow] | ApiError, piece: Piece, deadline: float
    ) -> Encoded | ApiError:
        if isinstance(rows, ApiError):
            return rows
        try:
            vector_ND = await model.batcher.submit(rows, deadline, is_small=piece.is_small)
            return Encoded(vector_ND, [len(row) for row in rows], model.encoder.config.max_tokens)
        except TimeoutError:
            return timed_out()
        except NotEncodable as error:
            # Asked for every failure: a broken GPU fails on any text, and then it would be wrong to blame this one.
            try:
                await self._try(model)
            except RuntimeError as failure:
                raise ApiError(503, "an encoder is failing; try again") from failure
            if error.failure.cause is Cause.MEMORY:
                return ApiError(503, "an encoder is short of memory; try again", code="memory")
            self._metrics.poisoned.inc()
            status, reason = 500 if error.failure.cause is Cause.MODEL else 400, error.failure.reason
            return ApiError(status, f"text {piece.first + error.row}: {reason}", param="input", code="not_encodable")

    def models(self) -> list[TextEncoder]:
        """The encoders that are loaded."""
        return [model.encoder for model in self._models.loaded()]

    async def prepare(self, key: str) -> None:
        """Load the model of a version, given by its key, try it, and compare it with the vectors of the index.

        Raises:
            ProbeError: it gives other vectors or ranks than the index was made with.
            BundleError: it is missing or damaged.
        """
        _, version = split_key(key)
        model = await self._models.get(version)
        try:
            await self._try(model)
            # Once, because all who wait for a version to be ready prepare it again and again.
            if version not in self._compared:
                await self._compare(version, model)
                self._compared.add(version)
        except RuntimeError as error:
            raise BundleError(f"version {version}: {error}") from error

    async def _compare(self, version: str, model: _Model) -> None:
        """Ask for some texts of the index in the way that requests are answered.

        Raises:
            ProbeError: the vectors, or the ranks by them, are others than those of the index.
            RuntimeError: the encoder fails on one of them.
        """
        probe = await asyncio.to_thread(self._probe_of, version)
        if probe is None:
            return
        texts = [probe.texts[i] for i in probe.asked]
        vector_ND = await self._encoded(model, texts, "a text of the index", is_small=False)
        check_ranks(self._source.bundle(version), probe, vector_ND)

    def _probe_of(self, version: str) -> Probe | None:
        bundle = self._source.bundle(version)
        manifest = read_manifest(bundle)
        if PROBE in manifest.files:
            return read_probe(bundle, manifest)
        logger.warning("version %s has no %s: its ranks are not compared", version, PROBE)
        return None

    async def check_health(self) -> None:
        """A real forward pass of every model; a replica that fails it, or hangs in it, is replaced."""
        if time.monotonic() - self._unloaded > UNLOAD_EVERY_S:
            self._unloaded = time.monotonic()
            try:
                self._models.unload(self._source.aliases().values())
            except EmbedderError as error:
                # Logged and not raised: that the aliases cannot be read is no fault of this replica.
                logger.error("%s", error)
        for model in self._models.loaded():
            await self._try(model)

    async def _try(self, model: _Model) -> None:
        vector_ND = await self._encoded(model, [READY], "any text", is_small=True)
        if abs(float(np.linalg.norm(vector_ND[0])) - 1) > UNIT:
            raise RuntimeError("the encoder gives vectors that are not of length 1")

    async def _encoded(self, model: _Model, texts: list[str], what: str, *, is_small: bool) -> np.ndarray:
        """The vectors (N, D) of texts of our own, in the way that requests are answered.

        Raises:
            RuntimeError: the encoder fails on `what` they are.
        """
        loop = asyncio.get_running_loop()
        rows = await loop.run_in_executor(self._tokenizing, model.encoder.tokenize, texts)
        try:
            return await model.batcher.submit(rows, is_small=is_small)
        except NotEncodable as error:
            raise RuntimeError(f"the encoder fails on {what}: {error.failure.reason}") from error

    def _tokenized(self, encoder: TextEncoder, piece: Piece, truncate: bool) -> list[TokenRow] | ApiError:
        """The tokens of a request or of a part of it, or why it is refused."""
        rows, is_cut = encoder.tokenize_and_tell(piece.texts)
        tokens, limit = sum(map(len, rows)), self._settings.max_request_tokens
        if tokens > limit:
            return ApiError(400, f"{tokens} tokens in one request; at most {limit}", param="input")
        if not truncate and any(is_cut):
            first, most = is_cut.index(True), encoder.config.max_tokens
            # Once more, because a row that is cut does not say how long its text is.
            length = len(encoder.tokenizer(str(piece.texts[first]), truncation=False)["input_ids"])
            return ApiError(400, f"text {piece.first + first}: {length} tokens; the model reads {most}", param="input")
        return rows

    def _load(self, version: str) -> _Model:
        """The model of a version; versions with the same model share it.

        Raises:
            BundleError: it is missing or damaged, or its vectors are too far from those of the index.
        """
        folder = self._source.bundle(version)
        manifest = verify(folder, only=f"{MODEL}/")
        # Versions are loaded in threads: two of one model at once would hold it twice.
        with self._load_lock:
            dtype = self._settings.dtype or manifest.dtype
            model = self._shared.get((manifest.encoder_fingerprint, dtype))
            if model is None:
                model = self._new_model(bundle_encoder(folder, manifest, dtype))
                self._shared[manifest.encoder_fingerprint, dtype] = model
            # For each version anew, because two indexes of one model may have been made in different formats. Always in
            # bfloat16, in which a GPU has weights and products, a CPU products alone.
            if dtype != manifest.dtype or dtype == "bfloat16":
                check_probe(folder, manifest, dtype, partial(encode_prompted, model.encoder))
            return model

    def _new_model(self, config: EncoderConfig) -> _Model:
        budget = together = step = self._settings.batch_tokens
        behind: list[ThreadPoolExecutor] = []
        if self._device.type == "cpu":
            behind = self._behind
            together = min(budget, THREAD_TOKENS * torch.get_num_threads())
            # Eight short texts: a CPU is no faster with more, and a query may have to wait for them.
            step = together // 3
        if self._threads > 1:
            # A long text beside a short one is computed apart from it: the short one would be filled up to its length.
            budget = together = min(budget, BATCH_TOKENS)
        lone_threads = self._threads if self._threads > 1 else 0
        encoder = load_inference_encoder(
            config.model_copy(update={"batch_tokens": together}), self._device, lone_threads=lone_threads
        )
        run = partial(self._compute, encoder)
        return _Model(encoder, TokenBatcher(run, budget, step, self._computing, self._metrics.batch, behind))

    def _compute(self, encoder: TextEncoder, rows: list[TokenRow]) -> np.ndarray:
        began = time.perf_counter()
        vectors = encode_tokens(encoder, rows)
        self._metrics.inference.observe(time.perf_counter() - began)
        return vectors


def _give_way() -> None:
    """Let the other threads of the machine, those of this process included, go before the calling one."""
    if sys.platform.startswith("linux"):
        # Linux alone has a priority for each thread. Not SCHED_IDLE: such a thread may get nothing while others work,
        # and holds the interpreter's lock meanwhile.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
