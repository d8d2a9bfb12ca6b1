"""The work of `train`, and the training of the reranker.

groups.py  whose labelled groups are trained on: the run's, and those of earlier runs
data.py    their rows, built by tasks in chunks
calls.py   calls in this process or as tasks, with the memory they ask for
worker.py  the Ray Train workers of `train` and of the reranker, whose steps the driver shows
"""
