"""Encoders and LLMs.

locate          finds model folders and refuses what cannot be loaded, without torch
weight_files    safetensors files by their headers
fingerprint     identity of a model folder, of an encoder and of labels
loader          loads configuration, tokenizer and weights of every kind of model, or refuses them
encoder         texts to unit vectors; loading of an encoder
encoder_export  an encoder as a folder that other tools read; the task of its plain prompts
onnx          an encoder on the CPU through ONNX Runtime
onednn        linear layers through oneDNN, packed or trained
causal_lm     the LLM that gives the feedback
memory        batches that do not fit into memory: halved, or item by item; what fitted
plain_tokenizer  tokenizers for which data is text, without control tokens
device        the device a process was given; memory that a CPU process keeps; the fastest matrix product of a device
st_folder     sentence-transformers folders
"""
