"""The work of `questions`.

asked_passages.py    for which datasets and passages questions are written
draft_tables.py      the tables of drafts and scores, and what these depend on
question_actors.py   the LLM in a pool of actors: writes drafts, then checks the best of each
question_files.py    which questions are kept, as train and test queries; what is told of the others
"""
