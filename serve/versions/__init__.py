"""Versions of the index.

served           where they are, and which one each alias serves in this process
missing_vectors  vectors of what was written through a version with another model
"""
