"""The work of `train`, and the training of the reranker.

groups.py  which labelled groups are trained on, those of earlier runs included
worker.py  the Ray Train workers of `train` and of the reranker, whose steps the driver shows
"""
