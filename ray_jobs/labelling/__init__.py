"""The work of `label`.

teachers.py         the LLM, a reranker, stored log-likelihoods or imported rewards: what each checks and does
provenance.py       what labels depend on, so that they resume and never mix
block_plan.py       which groups are ahead, in units and blocks
imported.py         rewards made elsewhere as labels
actors.py           the LLM in a pool of actors
reranker.py         the cross-encoder: trained on the LLM's rewards, then labelling in a pool of actors
rehearsal.py        a sample on this machine, for the dry run
rounding_sample.py  labels in bfloat16 beside float32, on a sample
summary.py          counts, report page and export
"""
