"""The index: collections of vectors and payload, searched, written to, compacted, and swapped as versions.

    builder            a collection from committed vectors
    build_memory       the memory that this takes
    bundle             model, shards and payload under one manifest: the unit that is deployed
    probe              whether an encoder that runs is the one of a bundle, by its vectors and ranks
    catalog            versions side by side, and aliases that move between them
    alias_table        what aliases name and have named
    opened             all open shards of a version: search, writes, snapshots
    parquet_export     documents and vectors of a task as Parquet
    living             one collection that is written to while it is searched
    collection         one collection on disk, which never changes
    memtable           what was written since, in memory
    state_folder       where what was written to a collection lies
    collection_reader  how far a process has read a collection
    metadata_change    a change of documents' metadata
    log                the write-ahead log of a collection
    compaction         collection and memtable made one
    writes             what was written when, so that another version can replay it
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
