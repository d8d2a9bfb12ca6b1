"""Encoders and LLMs."""
