"""The command `llm-embedder`. It starts jobs and the service by the names of their modules, and imports neither.

commands      what can be typed: commands, options, exit statuses
launch        starts another module in the place of this process
new_run       `init`: looks at the data, asks, and writes a run file
found_data    what lies in a folder of data, and which task and format it is
run_text      the text of a run file, with comments
findings      `doctor`: what of this machine and its cluster will not work, and the remedy
question      `ask`: one question to a service that runs
"""
