"""Look after the versions of an index, also while it is served.

    python -m embedder.index runs/demo/indexes                        list versions and aliases
    python -m embedder.index runs/demo/indexes snapshot NAME          all there is now as a version of its own
    python -m embedder.index runs/demo/indexes restore FOLDER NAME    a bundle from elsewhere, once it is verified
    python -m embedder.index runs/demo/indexes export TASK FILE       all documents of a task with vectors, as Parquet
    python -m embedder.index runs/demo/indexes point ALIAS VERSION    let an alias name another version
    python -m embedder.index runs/demo/indexes remove VERSION         remove one that no alias names
    python -m embedder.index runs/demo/indexes erase                  remove what was deleted or replaced, now

The folder is `indexes` below `paths.work`, here or in an object store (`s3://bucket/run/indexes`). A running service
goes over to what an alias names within a second or two.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from embedder.config.paths import any_path
from embedder.console import console, exit_on_error
from embedder.errors import ConfigError
from embedder.storage.object_store import AnyPath, ObjectPath

if TYPE_CHECKING:
    from embedder.index.catalog import Catalog

CHANGES_FILES = {"snapshot", "restore", "remove", "erase"}
"""Actions that add or remove files of versions."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line; exit status 2 and one line for an error the user can fix."""
    options = _parser().parse_args(arguments)
    with exit_on_error(OSError):
        lines = _run(options)
    for line in lines:
        console().print(line, markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m embedder.index", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("indexes", type=any_path, help="folder of versions and aliases")
    actions = parser.add_subparsers(dest="action")
    snapshot = actions.add_parser("snapshot", help="all there is now as a version of its own")
    snapshot.add_argument("name")
    snapshot.add_argument("--of", default="live", help="alias, or a version as it was built; default live")
    restore = actions.add_parser("restore", help="a bundle from elsewhere as a version")
    restore.add_argument("folder", type=any_path)
    restore.add_argument("name")
    export = actions.add_parser("export", help="all documents of a task with their vectors, as a Parquet file")
    export.add_argument("task")
    export.add_argument("file", type=Path)
    export.add_argument("--of", default="live", help="alias, or a version as it was built; default live")
    point = actions.add_parser("point", help="let an alias name a version")
    point.add_argument("alias")
    point.add_argument("version")
    actions.add_parser("remove", help="remove a version").add_argument("version")
    actions.add_parser("erase", help="remove what was deleted or replaced from log, snapshots and versions, now")
    return parser


def _run(options: argparse.Namespace) -> list[str]:
    """Do what was asked for; returns the lines to print.

    Raises:
        ConfigError: there is no such version, or the name is taken.
        BundleError: a version is damaged.
    """
    if not options.indexes.is_dir():
        raise ConfigError(f"{options.indexes}: no such folder; give `indexes` of a run, which `ray_jobs.index` makes")
    # FAISS is imported here and not above, because help and a wrong folder must not wait for it.
    from embedder.index.catalog import Catalog

    catalog = Catalog(options.indexes)
    if isinstance(options.indexes, ObjectPath) and options.action in CHANGES_FILES:
        # Versions in a store share files: nobody may remove one while another is being added.
        from embedder.storage.holding import holding

        with holding(options.indexes.parent, f"index {options.action}"):
            return _act(options, catalog)
    return _act(options, catalog)


def _act(options: argparse.Namespace, catalog: Catalog) -> list[str]:
    from embedder.index.catalog import Catalog
    from embedder.index.erasure import erase
    from embedder.index.opened import OpenIndex
    from embedder.index.parquet_export import check_target, export_documents

    match options.action:
        case "snapshot":
            version = catalog.resolve(options.of)
            index = OpenIndex.open(catalog.here(version), catalog.state(version, options.of))
            index.snapshot(catalog, options.name)
            return [f"{catalog.bundle(options.name)}: a snapshot of {version}; {_size(catalog, options.name)}"]
        case "export":
            # Before anything is fetched or opened.
            check_target(options.file)
            version = catalog.resolve(options.of)
            index = OpenIndex.open(catalog.here(version), catalog.state(version, options.of))
            rows = export_documents(index, options.task, options.file)
            return [f"{options.file}: {rows:,} documents of {options.task} in {version}"]
        case "restore":
            source: AnyPath = options.folder
            # In a store a version is not a folder of its files.
            bundle = source if isinstance(source, Path) else Catalog(source.parent.parent).here(source.name)
            catalog.restore(bundle, options.name)
            return [f"{catalog.bundle(options.name)}: restored; {_size(catalog, options.name)}"]
        case "point":
            catalog.point(options.alias, options.version)
            return [f"{options.alias} names {catalog.resolve(options.alias)}"]
        case "remove":
            catalog.remove(options.version)
            return [f"{options.version}: removed"]
        case "erase":
            erase(catalog, lambda line: console().print(line, markup=False))
            return []
        case _:
            return _listed(catalog)


def _listed(catalog: Catalog) -> list[str]:
    from embedder.index.listing import list_versions

    lines = [version.line for version in list_versions(catalog)]
    return lines or [f"{catalog.folder}: no versions; build one with `python -m ray_jobs.index`"]


def _size(catalog: Catalog, version: str) -> str:
    from embedder.index.listing import list_version

    return list_version(catalog, version).size


if __name__ == "__main__":
    main()
