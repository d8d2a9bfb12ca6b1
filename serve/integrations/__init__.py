"""The service for agents and in frameworks, each over our own client and with an optional extra of its own.

mcp_server      the tool `search` for agents, over MCP
served_search   one kind of search of a running service, as the retrievers ask it
langchain       a retriever of LangChain
llama_index     a retriever of LlamaIndex
haystack        a retriever of Haystack
"""
