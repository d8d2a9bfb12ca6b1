"""Connections of pyarrow to object stores, by the URIs of `embedder.storage.object_store`."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

import pyarrow as pa
from pyarrow import fs

from embedder.credentials import masked
from embedder.errors import ConfigError


class StoreParts(NamedTuple):
    """The parts of a store's URI, decoded."""

    scheme: str
    user: list[str]
    """Name and secret, as far as they are given."""
    bucket: str
    parameters: dict[str, str]


def store_parts(store: str) -> StoreParts:
    """The parts of `ObjectPath.store`."""
    scheme, _, rest = store.partition("://")
    place, _, query = rest.partition("?")
    user, _, bucket = place.rpartition("@")
    given = [unquote(part) for part in user.split(":", 1)] if user else []
    return StoreParts(scheme, given, bucket, dict(parse_qsl(query, keep_blank_values=True)))


@lru_cache(maxsize=16)
def filesystem_of(store: str) -> fs.FileSystem:
    """The connection to a bucket or container, one a process, by its URI (`ObjectPath.store`).

    Raises:
        ConfigError: a parameter of the URI is unknown, no account is named, or the store's region cannot be found.
    """
    if store.startswith("az:"):
        return _azure(store)
    # Small objects are then put by one request; otherwise each takes three.
    delayed = "" if "allow_delayed_open=" in store or not store.startswith("s3:") else "allow_delayed_open=true"
    try:
        return fs.FileSystem.from_uri(f"{store}{'&' if '?' in store else '?'}{delayed}" if delayed else store)[0]
    except (OSError, pa.ArrowException) as error:
        reason = masked(str(error).splitlines()[0])
    # Not chained: errors of pyarrow repeat the URI with its secret.
    raise ConfigError(f"{masked(store)}: cannot be opened ({reason}); correct the URI or the environment (AWS_...)")


def _azure(store: str) -> fs.FileSystem:
    """The connection to a container. Arrow knows no such URI, so its parts and variables are those of obstore.

    Raises:
        ConfigError: no account is named.
    """
    _, given, _, parameters = store_parts(store)
    account = given[0] if given else os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
    if not account:
        raise ConfigError(f"{masked(store)}: no account is named; set AZURE_STORAGE_ACCOUNT_NAME")
    key = given[1] if len(given) > 1 else os.environ.get("AZURE_STORAGE_ACCOUNT_KEY")
    # An emulator has the account in its path, which Arrow adds itself.
    endpoint = parameters.get("endpoint_override", "").removesuffix(f"/{account}") or None
    scheme = parameters.get("scheme")
    return fs.AzureFileSystem(
        account,
        account_key=key,
        blob_storage_authority=endpoint,
        dfs_storage_authority=endpoint,
        blob_storage_scheme=scheme,
        dfs_storage_scheme=scheme,
    )
