"""How good a retriever is, by its rankings and by what an LLM makes of the passages.

base.py               what an evaluation is: a question in, a task for the LLM out; its reply in, values out
evaluations.py        the seven evaluations, and which one a dataset gets
retrieval.py          measures of rankings; rankings that need no model
answers.py            measures of written answers
endpoint.py           vectors from a server with OpenAI's API
asked.py              which queries the LLM is asked about, and which of them together
judge.py              asks the LLM
replies.py            where the LLM's replies are kept, and what they depend on
measurements.py       reads datasets, asks about them and collects the values of every query
statistics.py         bootstrap intervals and the randomisation test
comparison.py         the numbers of a report
gains.py              summary.json and the closing table: what the training gained in each task
examples.py           queries won and lost
evaluation_report.py  results.json, report.html, comparison.png and the table of the console
local.py              compares encoders in one process, without Ray
__main__.py           the command `python -m embedder.evaluation`
"""
