"""How good a retriever is, by rankings and by what an LLM makes of them."""
