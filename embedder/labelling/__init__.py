"""From candidates to rewards given by an LLM.

labeller.py            labels groups: sample outputs, score them with and without each candidate, reward
units.py               which groups are labelled together
prompts.py             the token ids that the LLM reads for a query and a candidate; worked examples
prompt_layout.py       the slots of a prompt in which data stands, and the fixed tokens between them
chat_template.py       a message in the LLM's own chat template
backends.py            chooses how an LLM is read: as trees, or one sequence at a time
divided_backend.py     an LLM that several GPUs share: what one process is asked, all of them do
tree_backend.py        the fast way: each shared prefix is computed once
server_backend.py      an LLM that a server runs: requests side by side, cost, identity
http_backend.py        such a server that gives log-likelihoods of prompts
chat_backend.py        a chat server, for judgements alone
completions.py         the forms in which servers take prompts and give log-likelihoods
sequential_backend.py  the slow way, right for every causal language model
prefix_tree.py         prompts that begin alike, as one tree of tokens
tree_attention.py      attention over such a tree, in chunks
tree_flex.py           the same as an interval test, by flex attention
sampling.py            seeded outputs of the LLM, drawn for many prompts at once
graph_sampling.py      the same on a GPU, each step repeated by a CUDA graph
own_answers.py         the prompt with which the LLM answers by itself, where rows have no answers
corpus_outputs.py      outputs of other queries, among which one is ranked
compute_cost.py        tokens and operations that an LLM had to compute
rewards.py             the rank reward and others, from log-likelihoods alone; their temperature
export.py              writes labels as the reference's files
rounding.py            what bfloat16 changes of rank rewards
even_draw.py           a few rows of many, drawn evenly, to be read by people
label_statistics.py    counts how much signal the labels carry
label_trust.py         do the rewards agree with people, with themselves, with another seed, and with answers
false_negatives.py     mined candidates that the LLM finds as good as a known positive
label_report.py        the page and the pictures of these counts
"""
