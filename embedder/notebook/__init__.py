"""The Python interface for notebooks and scripts: no run file, no Ray, no service. docs/python.md shows it.

encoding   an encoder: texts to vectors, passages ranked for a query
rewarding  an LLM that rewards the candidates of groups
teaching   an encoder trained on labelled groups
comparing  encoders measured on the same queries
searching  an index that `index` built, opened and searched
workers    who does the work: this process, or what `ray_jobs.ray_workers` starts

All names of it that are public are names of `embedder` too, which imports this package when one of them is asked for.
"""
