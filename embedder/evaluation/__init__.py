"""How good a retriever is, by its rankings and by what an LLM makes of the passages.

base           what an evaluation is: a question in, a task for the LLM out; its reply in, values out
evaluations    the seven evaluations, and which one a dataset gets
retrieval      measures of rankings; rankings that need no model
answers        measures of written answers
endpoint       vectors from a server with OpenAI's API
questions      chosen queries with their passages, and which of them are asked together
judge          asks the LLM
replies        where the LLM's replies are kept, and what they depend on
measurements   asks about datasets and collects the values of every query
statistics     bootstrap intervals and the randomisation test
comparison     the numbers of a report
examples       queries won and lost
evaluation_report  results.json, report.html, comparison.png and the table of the console
local          measures encoders in one process, without Ray
__main__       the command `python -m embedder.evaluation`
"""
