"""From candidates to rewards given by an LLM.

labeller          labels groups: sample outputs, score them with and without each candidate, reward
units             which groups are labelled together
prompts           the token ids that the LLM reads for a query and a candidate; worked examples
backends          chooses how an LLM is read: as trees, or one sequence at a time
tree_backend      the fast way: each shared prefix is computed once
sequential_backend  the slow way, right for every causal language model
prefix_tree       prompts that begin alike, as one tree of tokens
tree_attention    attention over such a tree
sampling          seeded outputs of the LLM, drawn for many prompts at once
compute_cost      tokens and operations that an LLM had to compute
rewards           the rank reward and others, from log-likelihoods alone
export            labelled groups as files of the reference, for other tools
label_statistics  counts how much signal the labels carry
label_report      the page and the pictures of these counts
"""
