"""Vectors, rankings and indexes over the cluster, for `mine`, `index` and `evaluate`.

vectors.py          vectors of passages and queries, made once per encoder
ranking_files.py    the rankings of one retriever as files, which a restart goes on with
word_rankings.py    the lexical ones, by parts of the corpus
vector_rankings.py  the dense ones, by shares of the vectors
vector_share.py     what a task does with its share
passages.py         a corpus in parts, and the texts of some passages
candidate_groups.py the groups of `mine`, made from rankings
encoders.py         the encoders behind the retrievers of an evaluation
retrievers.py       the rankings of each retriever of an evaluation
measuring.py        what their rankings are worth
judges.py           the LLM in a pool of actors, asked about retrieved passages
shards.py           what the shards of an index version are, and its probe
shard_builds.py     the building of shards, each from pieces of its own
"""
