"""From a corpus to the candidates of each query.

ranking.py        lexical (BM25) and dense rankings of passages, cut and merged
device_search.py  dense rankings on a GPU, exact
candidates.py     the group of a query: known positives, then negatives drawn from the rankings, no duplicates
"""
