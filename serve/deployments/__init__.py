"""The Ray Serve deployments.

ingress           the HTTP interface in replicas of its own
encoder_replica   the models of the served versions
shard_replica     a slice of the index shards
ray_backend       the ingress's calls to the other two: deadlines, repeats, overload
coalescing        requests on their way to the encoders, several in one call
batching          texts of many requests in one forward pass
version_cache     what a replica has loaded, by version
service_metrics   what is counted, for Prometheus
"""
