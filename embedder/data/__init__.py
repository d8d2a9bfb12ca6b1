"""Rows that pass between jobs, and the source files they are made from.

dataset     one source to one dataset: its reader, the dev split, the limits
first_rows  the first rows of a source, to refuse early what cannot succeed
documents/  files of people, read into sections and cut into chunks
hub_dataset  data sets of the Hugging Face hub as files of this machine
formats/    a reader for each format of source files
json_lines  files of lines, read as bytes; the JSON object of a line
fields      fields of one source row, checked
rows        source rows as they are counted; rejected rows
stored_passages  the passages of a source while it is read, in a file
worked_examples  which passages are a query itself, with its answer
metadata    values that a passage may hold to be filtered by
records     tables of passages, queries, groups and labels; Parquet files
ledger      work that is committed block by block
row_ids     sets of row ids in little memory
"""
