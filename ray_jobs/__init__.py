"""The commands: each file reads tables of a run, maps over a Ray cluster, writes tables and reports.

    prepare.py   source files into checked rows
    questions.py questions that the LLM writes for passages of a corpus without any
    mine.py      candidates of each training query
    label.py     rewards of the candidates
    train.py     an encoder from the labelled groups
    index.py     a version of the index from the trained encoder
    evaluate.py  retrievers compared
    pipeline.py  all of these, each once
    submit.py    the `ray job submit` line of a command
    ray_workers.py  the work of a notebook on Ray
    check_nodes.py  what every node of the cluster must show before a command runs there

A command is its manual, what it checks and what it does in order. Modules that bring torch or Ray are imported where
the work begins, because `--help` and a refused run file should not wait for them.
"""

import sys

from embedder.interrupt import end_at_interrupt
from embedder.run.masked_logs import mask_logs

# Here, because every worker of a cluster that runs code of this package imports it before it does anything.
mask_logs()
# `python -m` is about to run a command of this package: from the first moment, since imports take seconds.
if sys.argv[0] == "-m":
    end_at_interrupt()
