"""The number of the calls from ingress to replicas, by which an update in which both meet is told from a fault."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from embedder.index.documents import Document
from embedder.index.filters import Condition, Filter, HasId, IsEmpty, Match, Range
from embedder.index.living import CollectionStats
from embedder.index.metadata_change import MetadataChange
from embedder.index.operations import Waiting
from embedder.index.results import SearchResults, Shown
from embedder.index.search_options import SearchOptions
from serve.backend import CALL_FORMAT, INDEX_CALLS, Encoded, Pair, Piece
from serve.deployments.encoder_replica import EncoderReplica
from serve.deployments.shard_replica import ShardReplica
from serve.http_errors import ApiError
from tests.serving import LocalBackend, local_service, publish, run_config


def test_call_format_has_another_number_when_the_calls_change():
    """What travels, in the order and with the types of the source.

    Where this fails, the calls have changed: raise CALL_FORMAT, say so in CHANGELOG.md, and write the new digest here.
    """
    methods = [EncoderReplica.encode, ShardReplica.call, *INDEX_CALLS.values()]
    values = [
        Piece,
        Pair,
        Encoded,
        ApiError.__init__,
        SearchOptions,
        Shown,
        Filter,
        Condition,
        Match,
        Range,
        IsEmpty,
        HasId,
    ]
    values += [Document, SearchResults, CollectionStats, Waiting, MetadataChange]
    # The words of the source, because how Python shows a type changes with its version.
    shape = [(one.__qualname__, list(one.__annotations__.items())) for one in (*methods, *values)]
    digest = hashlib.sha256(repr(shape).encode()).hexdigest()[:16]
    assert (CALL_FORMAT, digest) == (4, "3b3a66185189b8c2")


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_folder: Path) -> LocalBackend:
    folder = tmp_path_factory.mktemp("format")
    publish(folder, tiny_encoder_folder, "v1")
    backend = local_service(run_config(folder, tiny_encoder_folder)).backend
    assert isinstance(backend, LocalBackend)
    return backend


@pytest.mark.parametrize("call_format", [{}, {"call_format": CALL_FORMAT + 1}])
def test_replica_refuses_a_call_of_another_format_so_that_it_is_tried_elsewhere(backend, call_format):
    """Without a number it is of the code before there was one. Another shape must not get as far as being read."""
    calls = [
        backend.encoder.encode("v1", ["texts and no pieces"], True, **call_format),
        backend.parts[0].call("live/v1", "a_method_of_then", "qa", **call_format),
    ]
    for call in calls:
        with pytest.raises(ApiError, match="is being updated") as raised:
            asyncio.run(call)
        assert raised.value.status == 503


def test_replica_answers_a_call_of_its_format(backend):
    stats = asyncio.run(backend.parts[0].call("live/v1", "stats", None, call_format=CALL_FORMAT))
    (encoded,) = asyncio.run(backend.encoder.encode("v1", [Piece(["a"])], True, CALL_FORMAT))
    assert stats.keys() == {"qa", "chat", "tool"} and len(encoded.vector_ND) == 1
