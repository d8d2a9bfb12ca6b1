"""Versions of the index."""
