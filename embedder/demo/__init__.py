"""The data of the demo: a retriever for a Python coding assistant, from packages alone.

build    writes the sources from the running Python and from the rows in *.jsonl (`python -m embedder.demo.build`)
seeds    what the training gained in runs with several seeds (`make demo-check`)
"""
