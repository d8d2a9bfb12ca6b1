"""The index: collections of vectors and payload, searched, written to, compacted, and swapped as versions.

    builder            a collection from committed vectors
    build_memory       the memory that this takes
    bundle             model, shards and payload under one manifest: the unit that is deployed
    probe              whether an encoder that runs is the one of a bundle, by its vectors and ranks
    catalog            versions side by side, and aliases that move between them
    alias_table        what aliases name
    stored_files       the files of versions in an object store, by their hash
    opened             all open shards of a version: search, writes, snapshots
    parquet_export     documents and vectors of a task as Parquet
    living             the documents of a task, written to while they are searched
    open_shards        those of some shards: operations made and applied
    shard              those of one shard, on disk and in memory
    collection         one collection on disk, which never changes
    memtable           what was written since, in memory
    metadata_change    a change of documents' metadata
    operations         what is written, as rows of a log
    task_log           the log of a task, for all versions
    state_places       where the logs are, and what a version makes of them
    compaction         collection and memtable made one
    erasure            what was deleted leaves the store
    writes             which documents were written, and what the corpus holds under their names
    sent               what clients send: nulls, unknown fields, fields of other services
    documents          documents and their rows on disk
    exact              exact search
    faiss_index        FAISS indexes by factory string
    lexical            search by words (BM25)
    filters            conditions on the metadata
    metadata_index     where each value of the metadata is
    results            search results, merged and fused
    search_options     what a search asks for besides its query
    listing            the versions as a user sees them
    manifest           files with the hash of every other file

`python -m embedder.index` looks after versions.
"""
