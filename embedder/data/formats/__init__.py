"""Source files of each format, read into rows that are checked.

reader      what all formats share: which files there are, the passages of a corpus
layout      the project's own data layout; queries with their positives and candidates
reference   files of FlagEmbedding's llm_embedder, whose rows become rows of the layout
long_texts  long documents, cut into queries and candidates
merging     rows that are one query, joined
document_source  folders of documents, whose chunks are passages
beir        BEIR folders with graded relevance judgements
"""
