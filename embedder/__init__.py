"""The method of LLM-Embedder: rewards, distillation, encoding, index and bundle. Needs neither Ray nor the web."""

__version__ = "0.1.0"
