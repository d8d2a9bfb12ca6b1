"""Files of people, such as pages, manuals, source code and tables, read into sections and cut into chunks.

kinds           which files of a folder are read, and as what
section         a part of a document under its headings; why a file cannot be read
plain_text      text, Markdown, reStructuredText and source code
web_page        HTML
pdf_pages       PDF
table_rows      CSV, JSON Lines and Parquet, a row at a time
tool_lists      OpenAPI descriptions and lists of tools, a tool at a time
reader_process  reads files in a process of its own, with bounds on memory and time
chunks          sections to chunks of so many tokens
"""
