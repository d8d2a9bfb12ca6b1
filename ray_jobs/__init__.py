"""One file a job; each reads, maps over the cluster, writes and reports."""
