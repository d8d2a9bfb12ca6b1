"""Vectors, rankings and indexes over the cluster, for `mine`, `index` and `evaluate`.

vectors.py       vectors of passages and queries, made once per encoder
rankings.py      dense and lexical rankings of all queries
gpu_rankings.py  the dense ones on the encoder's GPUs
encoders.py      the encoders behind the retrievers of an evaluation
retrievers.py    the rankings of each retriever of an evaluation
judges.py        the LLM in a pool of actors, asked about retrieved passages
shards.py        what the shards of an index version are, and its probe
shard_builds.py  the building of shards, each from pieces of its own
"""
