"""The work of `train`.

groups.py  which labelled groups are trained on, those of earlier runs included
worker.py  the Ray Train workers
"""
