"""Requests and answers on the wire.

strict             what answers are made of, and texts
embedding_schemas  vectors and names of models: OpenAI's shape and TEI's
rerank_schemas     reranking, in Cohere's shape
search_schemas     searches and retrieved prompts
index_schemas      documents, aliases, versions
state_schemas      health, replicas, errors
"""
