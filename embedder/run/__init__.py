"""A run: its folder, its stages, and what they cost.

rounds.py        the stages of all rounds, in order
stages.py        which stages are done, by the contents they read and wrote
written.py       which files of queries `questions` wrote, and which `prepare` did
lineage.py       where a trained encoder comes from
masked_logs.py   what jobs, workers and replicas log, without a credential in it
machine.py       this machine: processors, GPUs, free memory, the build of torch
preflight.py     what a machine must show before a stage works on it
ray_start.py     a Ray that starts on this machine: what keeps it from starting is one line
ray_token.py     who may read Ray's token; a Ray that asks for none is refused
gpu_shares.py    the GPUs that a stage asks for: missing, or unused
cost.py          the work ahead, from sizes alone
too_long.py      how many prepared texts are too long for the encoder
prompt_room.py   whether the LLM's prompt holds the recent text of long documents and a candidate
stage_report.py  what a finished stage did
run_status.py    what a run has done, what is missing, what it cost; the page that links all its reports
"""
