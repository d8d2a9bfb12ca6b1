"""Histories of the storage protocol by seed: writers, followers, folds, clocks, restarts and a store that fails."""
