"""Rows that pass between jobs."""
