"""What the service counts, for Prometheus, which sees the names with `ray_` before them.

Seconds; counters end in `_total`; labels have few values: never a user, a text, or a path that is not a route.
"""

from __future__ import annotations

from ray.serve.metrics import Counter, Gauge, Histogram

from embedder.index.opened import OpenIndex

SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0]
TOKENS = [16.0, 64.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0]


class IngressMetrics:
    """Requests as clients see them."""

    def __init__(self) -> None:
        labels = ("route", "status")
        self._requests = Counter("embedder_requests_total", "Requests answered", labels)
        self._seconds = Histogram("embedder_request_duration_seconds", "Of a request", SECONDS, ("route",))
        self._rejected = Counter("embedder_rejected_total", "Requests refused with 4xx, by status", ("status",))
        self.retries = Counter("embedder_retries_total", "Calls made again after a replica died")
        self._version = Gauge(
            "embedder_version_info", "1 for what an alias serves", ("index", "model_version", "index_version")
        )

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.inc(1, {"route": route, "status": str(status)})
        self._seconds.observe(seconds, {"route": route})
        if 400 <= status < 500:
            self._rejected.inc(1, {"status": str(status)})

    def refused(self, requests: int) -> None:
        """Count requests that were refused before their route was looked up, for overload."""
        self._requests.inc(requests, {"route": "none", "status": "429"})
        self._rejected.inc(requests, {"status": "429"})

    def serves(self, alias: str, model_version: str, index_version: str, *, is_served: bool = True) -> None:
        """Note what an alias serves, or serves no more."""
        labels = {"index": alias, "model_version": model_version, "index_version": index_version}
        self._version.set(float(is_served), labels)


class EncoderMetrics:
    """Work of one encoder replica."""

    def __init__(self) -> None:
        self._tokens = Counter("embedder_input_tokens_total", "Tokens read")
        self._tokenization = Histogram("embedder_tokenization_duration_seconds", "Of a request's tokens", SECONDS)
        self._queue = Histogram("embedder_queue_duration_seconds", "Until a request's first text is computed", SECONDS)
        self.inference = Histogram("embedder_inference_duration_seconds", "Of a batch's forward pass", SECONDS)
        self._rows = Histogram("embedder_batch_size", "Texts of a batch", SIZES)
        self._batch_tokens = Histogram("embedder_batch_tokens", "Tokens of a batch", TOKENS)
        self._waiting = Gauge("embedder_queue_depth", "Texts that wait for a batch")
        self.poisoned = Counter("embedder_not_encodable_total", "Texts that the model fails on")

    def tokenized(self, seconds: float, tokens: int, waiting: int) -> None:
        """Note a request that arrived, while so many texts wait."""
        self._tokenization.observe(seconds)
        if tokens:  # Ray refuses to count nothing.
            self._tokens.inc(tokens)
        self._waiting.set(waiting)

    def batch(self, rows: int, tokens: int, waited_s: float) -> None:
        """Note a batch that begins."""
        self._rows.observe(rows)
        self._batch_tokens.observe(tokens)
        self._queue.observe(waited_s)


class ShardMetrics:
    """Work of one slice of the index."""

    def __init__(self, slice_number: int) -> None:
        self._slice = {"shard": str(slice_number)}
        self._seconds = Histogram("embedder_index_search_duration_seconds", "Of one search", SECONDS, ("shard",))
        self._documents = Gauge("embedder_index_documents", "Documents of a task", ("shard", "task"))
        self._uncompacted = Gauge("embedder_index_uncompacted", "Writes not compacted yet", ("shard", "task"))

    def searched(self, seconds: float) -> None:
        self._seconds.observe(seconds, self._slice)

    def sizes(self, index: OpenIndex) -> None:
        for task, stats in index.stats().items():
            labels = {**self._slice, "task": task}
            self._documents.set(stats.documents, labels)
            self._uncompacted.set(stats.uncompacted, labels)
