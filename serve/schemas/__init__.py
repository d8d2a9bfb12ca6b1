"""Requests and answers on the wire.

strict             what answers are made of, and texts
embedding_schemas  vectors and names of models: OpenAI's shape and TEI's
rerank_schemas     reranking, in Cohere's shape
search_schemas     searches and retrieved prompts
document_schemas   documents written, read, listed, changed, deleted
index_schemas      aliases, versions, sizes
sent_vectors       vectors that clients send
state_schemas      health, replicas, errors
"""
