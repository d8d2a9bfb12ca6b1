"""Deployment: encoders and rerankers of the served versions, behind batches that all requests share."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import torch

from embedder.config.cutting import PromptedText, prompted_text
from embedder.config.paths import EncodingDtype
from embedder.config.run import EncoderConfig
from embedder.config.serve import ServeConfig
from embedder.errors import BundleError, EmbedderError
from embedder.index.bundle import MODEL, RERANKER, Manifest, bundle_encoder, read_manifest, verify
from embedder.index.probe import PROBE, Probe, check_probe, check_ranks, read_probe
from embedder.models.device import resolve_device
from embedder.models.encoder import TextEncoder, TokenRow, encode_prompted, encode_tokens
from embedder.models.onnx import load_inference_encoder
from embedder.run.machine import cpus
from embedder.training.cross_encoder import load_cross_encoder
from serve.backend import Encoded, Pair, Piece, Texts, check_format
from serve.deployments.batching import Cause, NotEncodable, Run, TokenBatcher
from serve.deployments.replica_memory import pass_over_imported, return_freed_memory
from serve.deployments.service_metrics import EncoderMetrics
from serve.deployments.version_cache import VersionCache
from serve.deployments.version_models import ServedEncoder, ServedReranker, VersionModels
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


class EncoderReplica:
    """Encodes texts that have their instruction already, and scores pairs.

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
        pass_over_imported()
        self._device = resolve_device(settings.gpus_per_replica)
        self._threads = threads
        # Two batches on one thread each take less time than one after the other on two.
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))) if threads == 1 else 1)
        self._source, self._settings = source, settings
        self._metrics = EncoderMetrics()
        # A thread each, because a tokenizer may not be used by two at once.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokens")
        self._tokenizing_large = ThreadPoolExecutor(1, thread_name_prefix="large-tokens")
        self._computing = [ThreadPoolExecutor(1, thread_name_prefix="forward") for _ in range(threads)]
        self._behind = [
            ThreadPoolExecutor(1, thread_name_prefix="large", initializer=_give_way) for _ in range(threads)
        ]
        self._budget, self._together, self._step = self._batches()
        # Weak, so that the last version that is unloaded takes the model with it.
        self._encoders: WeakValueDictionary[tuple[str, EncodingDtype], ServedEncoder] = WeakValueDictionary()
        self._rerankers: WeakValueDictionary[tuple[str, ...], ServedReranker] = WeakValueDictionary()
        self._load_lock = threading.Lock()
        self._models = VersionCache(self._load)
        self._compared: set[str] = set()
        named = dict.fromkeys(split_key(key)[1] for key in source.keys()[: settings.max_versions])
        self._models.preload(named, deployed)
        self._unloaded = time.monotonic()

    async def encode(
        self, version: str, pieces: list[Piece], truncate: bool, call_format: int = 0
    ) -> list[Encoded | ApiError]:
        """The vectors of the texts of several requests, or parts of them, by the models of a version, or why not.

        Of pairs the scores (N, 1).

        Raises:
            ApiError: the model itself is failing, or the caller is of another version of this code.
            BundleError: the version is missing or damaged.
        """
        check_format(call_format)
        arrived = time.monotonic()
        models = await self._models.get(version)
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        # A single text of 65,000 characters takes a tenth of a second, which small requests would wait for.
        is_small = all(piece.is_small for piece in pieces)
        thread = self._tokenizing if is_small else self._tokenizing_large
        made = await loop.run_in_executor(
            thread, lambda: [self._tokenized(models, piece, truncate, is_small=is_small) for piece in pieces]
        )
        tokens = sum(len(row) for rows in made if not isinstance(rows, ApiError) for row in rows)
        waiting = sum(model.batcher.waiting for model in models.both())
        self._metrics.tokenized(time.perf_counter() - began, tokens, waiting)
        calls = [
            self._vectors(models, rows, piece, arrived + piece.seconds)
            for piece, rows in zip(pieces, made, strict=True)
        ]
        return list(await asyncio.gather(*calls))

    async def _vectors(
        self, models: VersionModels, rows: list[TokenRow] | ApiError, piece: Piece, deadline: float
    ) -> Encoded | ApiError:
        if isinstance(rows, ApiError):
            return rows
        model = models.of(piece.texts)
        try:
            vector_ND = await model.batcher.submit(rows, deadline, is_small=piece.is_small)
            return Encoded(vector_ND, model.counts(rows), model.network.max_tokens)
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
        return [models.encoder.network for models in self._models.loaded()]

    async def prepare(self, key: str) -> None:
        """Load the models of a version, given by its key, try them, and compare the encoder with the index.

        Raises:
            ProbeError: it gives other vectors or ranks than the index was made with.
            BundleError: it is missing or damaged.
        """
        _, version = split_key(key)
        models = await self._models.get(version)
        try:
            for model in models.both():
                await self._try(model)
            # Once, because all who wait for a version to be ready prepare it again and again.
            if version not in self._compared:
                await self._compare(version, models.encoder)
                self._compared.add(version)
        except RuntimeError as error:
            raise BundleError(f"version {version}: {error}") from error

    async def _compare(self, version: str, encoder: ServedEncoder) -> None:
        """Ask for some texts of the index in the way that requests are answered.

        Raises:
            ProbeError: the vectors, or the ranks by them, are others than those of the index.
            RuntimeError: the encoder fails on one of them.
        """
        probe = await asyncio.to_thread(self._probe_of, version)
        if probe is None:
            return
        texts = [probe.texts[i] for i in probe.asked]
        vector_ND = await self._computed(encoder, _plain(texts), "a text of the index", is_small=False)
        check_ranks(self._source.place(version), probe, vector_ND)

    def _bundle(self, version: str) -> Path:
        """The bundle of a version, with all that an encoder reads of it."""
        return self._source.bundle(version, [f"{MODEL}/", f"{RERANKER}/", PROBE])

    def _probe_of(self, version: str) -> Probe | None:
        bundle = self._bundle(version)
        manifest = read_manifest(bundle)
        if PROBE in manifest.files:
            return read_probe(bundle, manifest)
        logger.warning("version %s has no %s: its ranks are not compared", version, PROBE)
        return None

    async def check_health(self) -> None:
        """A real forward pass of every model; a replica that fails it, or hangs in it, is replaced."""
        # Not waited for: it may stand behind the tokens of large texts.
        self._tokenizing_large.submit(return_freed_memory)
        if time.monotonic() - self._unloaded > UNLOAD_EVERY_S:
            self._unloaded = time.monotonic()
            try:
                self._models.unload((await asyncio.to_thread(self._source.aliases)).values())
                await asyncio.to_thread(self._source.forget_removed)
            except EmbedderError as error:
                # Logged and not raised: that the aliases cannot be read is no fault of this replica.
                logger.error("%s", error)
        for models in self._models.loaded():
            for model in models.both():
                await self._try(model)

    async def _try(self, model: ServedEncoder | ServedReranker) -> None:
        if isinstance(model, ServedReranker):
            await self._computed(model, [Pair(prompted_text("", READY), READY)], "any pair")
            return
        vector_ND = await self._computed(model, _plain([READY]), "any text")
        if abs(float(np.linalg.norm(vector_ND[0])) - 1) > UNIT:
            raise RuntimeError("the encoder gives vectors that are not of length 1")

    async def _computed(
        self, model: ServedEncoder | ServedReranker, texts: Texts, what: str, *, is_small: bool = True
    ) -> np.ndarray:
        """The vectors or scores of texts of our own, in the way that requests are answered.

        Raises:
            RuntimeError: the model fails on `what` they are.
        """
        rows = await asyncio.get_running_loop().run_in_executor(self._tokenizing, model.tokenize, texts)
        try:
            return await model.batcher.submit(rows, is_small=is_small)
        except NotEncodable as error:
            name = "reranker" if isinstance(model, ServedReranker) else "encoder"
            raise RuntimeError(f"the {name} fails on {what}: {error.failure.reason}") from error

    def _tokenized(
        self, models: VersionModels, piece: Piece, truncate: bool, *, is_small: bool
    ) -> list[TokenRow] | ApiError:
        """The tokens of a request or of a part of it, or why it is refused."""
        try:
            model = models.of(piece.texts)
        except ApiError as error:
            return error
        rows = model.tokenize(piece.texts, is_small=is_small)
        tokens, limit = sum(model.counts(rows)), self._settings.max_request_tokens
        if tokens > limit:
            return ApiError(400, f"{tokens} tokens in one request; at most {limit}", param="input")
        if not truncate and (found := model.too_long(piece.texts, rows, is_small=is_small)):
            i, length = found
            said = f"text {piece.first + i}: {length} tokens; the model reads {model.network.max_tokens}"
            return ApiError(400, said, param="input")
        return rows

    def _load(self, version: str) -> VersionModels:
        """The models of a version; versions with the same ones share them.

        Raises:
            BundleError: it is missing or damaged, or its vectors are too far from those of the index.
        """
        folder = self._bundle(version)
        manifest = verify(folder, only=f"{MODEL}/")
        # Versions are loaded in threads: two of one model at once would hold it twice.
        with self._load_lock:
            dtype = self._settings.dtype or manifest.dtype
            encoder = self._encoders.get((manifest.encoder_fingerprint, dtype))
            if encoder is None:
                encoder = self._new_encoder(bundle_encoder(folder, manifest, dtype))
                self._encoders[manifest.encoder_fingerprint, dtype] = encoder
            # For each version anew, because two indexes of one model may have been made in different formats. Always in
            # bfloat16, in which a GPU has weights and products, a CPU products alone.
            if dtype != manifest.dtype or dtype == "bfloat16":
                check_probe(folder, manifest, dtype, partial(encode_prompted, encoder.network))
            return VersionModels(encoder, self._reranker(folder, manifest) if manifest.has_reranker else None)

    def _reranker(self, bundle: Path, manifest: Manifest) -> ServedReranker:
        manifest.check_files(bundle, f"{RERANKER}/")
        digests = tuple(digest for name, digest in sorted(manifest.files.items()) if name.startswith(f"{RERANKER}/"))
        reranker = self._rerankers.get(digests)
        if reranker is None:
            network = load_cross_encoder(str(bundle / RERANKER), None, self._together, self._device)
            batcher = self._batcher(lambda rows: network.score_rows(rows)[:, None])
            reranker = ServedReranker(network, batcher)
            self._rerankers[digests] = reranker
        return reranker

    def _new_encoder(self, config: EncoderConfig) -> ServedEncoder:
        lone_threads = self._threads if self._threads > 1 else 0
        network = load_inference_encoder(
            config.model_copy(update={"batch_tokens": self._together}), self._device, lone_threads=lone_threads
        )
        return ServedEncoder(network, self._batcher(partial(encode_tokens, network)))

    def _batches(self) -> tuple[int, int, int]:
        """Tokens of a batch, those computed together, and those of a batch of large requests alone."""
        budget = together = step = self._settings.batch_tokens
        if self._device.type == "cpu":
            together = min(budget, THREAD_TOKENS * torch.get_num_threads())
            # Eight short texts: a CPU is no faster with more, and a query may have to wait for them.
            step = together // 3
        if self._threads > 1:
            # A long text beside a short one is computed apart from it: the short one would be filled up to its length.
            budget = together = min(budget, BATCH_TOKENS)
        return budget, together, step

    def _batcher(self, run: Run) -> TokenBatcher:
        """Batches of a model of their own, computed in the threads of all."""
        behind = self._behind if self._device.type == "cpu" else []
        compute = partial(self._compute, run)
        return TokenBatcher(compute, self._budget, self._step, self._computing, self._metrics.batch, behind)

    def _compute(self, run: Run, rows: list[TokenRow]) -> np.ndarray:
        began = time.perf_counter()
        vectors = run(rows)
        self._metrics.inference.observe(time.perf_counter() - began)
        return vectors


def _plain(texts: list[str]) -> list[PromptedText]:
    return [prompted_text("", text) for text in texts]


def _give_way() -> None:
    """Let the other threads of the machine, those of this process included, go before the calling one."""
    if sys.platform.startswith("linux"):
        # Linux alone has a priority for each thread. Not SCHED_IDLE: such a thread may get nothing while others work,
        # and holds the interpreter's lock meanwhile.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
