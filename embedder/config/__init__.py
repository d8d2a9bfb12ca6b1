"""Settings of a run: typed models of the sections of a run file, and how it is read.

run            the whole run file; the sections `encoder` and `llm`
paths          section `paths`; types of paths and models; the base class of all settings
tasks          section `tasks`: the built-in tasks and their prompt templates
cutting        a text behind its instruction, and which part of it stays where both are too long
prepare        section `prepare`: datasets
questions      section `questions`: questions that the LLM writes
language       section `words`: how queries fall into words
mine           section `mine`: candidates
label          sections `label` and `reranker`: rewards
train          section `train`
index          section `index`, and how collections are built and searched
evaluate       section `evaluate`: retrievers
endpoints      addresses of servers that are asked: vectors, an LLM
serve          section `serve`: the service
pipeline       section `pipeline`: rounds
cluster        section `cluster`: what is asked of Ray
submit         section `submit`: how jobs are sent to a cluster
load           reads a run file and its overrides; the options of commands that take one
unknown_keys   the answer to a key that is not a setting: the nearest known one, or its new name
manual         writes docs/configuration.md from the models (`python -m embedder.config.manual`)
"""
