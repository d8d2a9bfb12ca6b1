"""The HTTP routes.

dependencies     what the routes take from the service
embeddings       /v1/embeddings, /v1/models, /embed, /info
rerank           /v1/rerank, /rerank
search           /v1/search, /v1/search/batch, /v1/retrieve/{task}
document_routes  /v1/indexes/{name}/documents: written, deleted, read, counted, listed, their metadata changed
indexes          /v1/indexes: what is served, aliases moved
health           /health, /ready, /live, /v1/state, /metrics
page             the web page at /
description      /openapi.json, and /docs made of it
"""
