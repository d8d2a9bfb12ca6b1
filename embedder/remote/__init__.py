"""Asking servers that others run.

server.py   JSON in, JSON out: key, attempts, pauses, limits
pace.py     how many requests are under way at once, and how many may be repeated
"""
