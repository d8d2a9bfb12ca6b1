"""Vectors and rankings over the cluster."""
