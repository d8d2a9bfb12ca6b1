"""A run: its stages, lineage and cost."""
