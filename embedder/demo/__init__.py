"""The built-in default: a retriever for a Python coding assistant, from packages alone."""
