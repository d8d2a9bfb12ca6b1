"""From a corpus to the candidates of each query.

ranking      lexical (BM25) and dense rankings of passages, cut and merged
candidates   the group of a query: known positives, then negatives drawn from the rankings, no duplicates
"""
