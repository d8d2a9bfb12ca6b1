"""From a corpus to the candidates of each query.

ranking.py         the rankings that parts of a corpus give, and how they become one
bm25.py            BM25 over parts of a corpus, with the word counts of the whole
device_search.py   exact dense search on a GPU or a CPU
passage_search.py  the same over passages that pass by, with the scores of named pairs
candidates.py      the group of a query: known positives, then negatives drawn from the rankings, no duplicates
"""
