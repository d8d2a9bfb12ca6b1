"""Chooses passages that are spread over a corpus, and passages that go together. P passages, D width, K clusters."""

from __future__ import annotations

import faiss
import numpy as np

MOST_CLUSTERS = 512
PASSAGES_A_CLUSTER = 4
ROUNDS = 10
"""Rounds of k-means."""
NEARLY_EQUAL = 0.95
"""Cosine from which two passages say the same."""


def spread_over_clusters(vector_PD: np.ndarray, count: int, seed: int) -> list[int]:
    """Positions of `count` passages, taken in turn from clusters of about as many vectors as clusters allow.

    Within a cluster the earlier position comes first, so that the caller's order decides.
    """
    clusters = max(1, min(MOST_CLUSTERS, count // PASSAGES_A_CLUSTER, len(vector_PD) // PASSAGES_A_CLUSTER))
    options = {"niter": ROUNDS, "seed": seed % 2**31, "spherical": True, "verbose": False, "min_points_per_centroid": 1}
    kmeans = faiss.Kmeans(vector_PD.shape[1], clusters, **options)
    kmeans.train(vector_PD)
    cluster_P = kmeans.index.search(vector_PD, 1)[1][:, 0]
    turns: dict[int, int] = {}
    order = []
    for position, cluster in enumerate(cluster_P.tolist()):
        turns[cluster] = turns.get(cluster, 0) + 1
        order.append((turns[cluster], cluster, position))
    return sorted(position for _, _, position in sorted(order)[:count])


def nearest_partner(vector_PD: np.ndarray, position: int, allowed_P: np.ndarray) -> int | None:
    """The passage nearest to one among those allowed that does not say nearly the same; None if there is none."""
    similarity_P = vector_PD @ vector_PD[position]
    fitting_P = allowed_P & (similarity_P < NEARLY_EQUAL)
    fitting_P[position] = False
    return int(np.where(fitting_P, similarity_P, -np.inf).argmax()) if fitting_P.any() else None
