"""Questions that an LLM writes for passages, and what is checked of them. Knows no cluster.

question_kinds.py  kinds of questions, the prompt of each, and the worked examples in the language of a passage
drafts.py          what the LLM wrote as question and output, or what is wrong with it
writer.py          the LLM: writes drafts, and scores their outputs with and without passages
verdicts.py        which questions are kept, by scores alone; near-duplicates
spread.py          passages spread over the clusters of a corpus, and which of them go together
"""
