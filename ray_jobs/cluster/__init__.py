"""What jobs share on a cluster.

session.py  options, errors and reports of a command; the connection to Ray
tables.py   the tables of a run that several jobs read
blocks.py   blocks of work in a pool of actors, committed one by one
llm_server.py an LLM on a server: its cost, and that results of two are never mixed
machines.py the machines of the cluster and their GPUs
look.py     looks at every node, for `llm-embedder doctor`
node_checks.py asks every machine, also those that join, whether it can work on the run
task_tree.py many tasks, some at a time, and results joined as a tree
metrics.py  progress for Prometheus, and the resources that actors held
"""
