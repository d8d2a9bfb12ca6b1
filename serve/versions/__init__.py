"""Versions of the index.

served         where they are, and which one each alias serves in this process
write_replay   writes of the version that an alias leaves, applied to the one it goes to
"""
