"""The service: an autoscaled encoder and index shards behind one HTTP interface."""
