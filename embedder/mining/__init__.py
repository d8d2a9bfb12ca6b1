"""From a corpus to the candidates of each query."""
