"""The Ray Serve deployments.

replica_layout    whether a replica does all by itself, or encoder and shards are deployments of their own
ingress           the HTTP interface, before one of the two backends
local_backend     encoder and index in the process of the ingress
ray_backend       the ingress's calls to those of other processes: deadlines, repeats, overload
encoder_replica   the models of the served versions
shard_replica     a slice of the index shards
admission         how much work is ahead, how fast it is done, and when a refused client should come back
fair_queue        what waits, shared out among keys or addresses
coalescing        requests on their way to the encoders, in two lanes: small ones together, large ones in pieces
batching          texts of many requests in one forward pass
version_models    the encoder and the reranker of a version: weights, tokenizers, batches
replica_memory    what is searched for garbage in a replica, and what is given back to the system
version_cache     what a replica has loaded, by version
service_metrics   what is counted, for Prometheus
node_metrics      the same of all nodes, for the service's own port
"""

import sys

from embedder.run.masked_logs import mask_logs

SWITCH_S = 0.0005
"""After how long a thread lets another one have Python's lock. While any thread splits texts into words, Python's 5 ms
are waited for at each of the dozen steps of a request between event loop and threads."""

# Here, because every worker of a cluster that runs code of this package imports it before it does anything.
mask_logs()
sys.setswitchinterval(SWITCH_S)
