"""Encoders and LLMs.

locate          finds model folders and refuses what cannot be loaded, without torch
weight_files    safetensors files by their headers
fingerprint     identity of a model folder, of an encoder and of labels
loader          loads configuration, tokenizer and weights of every kind of model, or refuses them
encoder         texts to unit vectors; loading of an encoder
encoder_export  an encoder as a folder that other tools read; the task of its plain prompts
onnx          an encoder for vectors only: on the CPU through ONNX Runtime
gpu_encoder   an encoder for vectors only on a GPU: number format, masks, compiled layers
compiled      layers of a network compiled by torch
onednn        linear layers through oneDNN, packed or trained
llm           what prompts need to know of an LLM, wherever it runs
open_llm      the LLM of a run file: loaded here, or on a server
remote_llm    an LLM that a server runs
causal_lm     the LLM that gives the feedback
architecture  an LLM's layers by its configuration alone; whether GPUs can share it
tensor_parallel  an LLM divided over several GPUs, a process each
memory        batches that do not fit into memory: halved, or item by item; what fitted
plain_tokenizer  tokenizers for which data is text, without control tokens
device        the device a process was given; memory that a CPU process keeps; the fastest matrix product of a device
st_folder     sentence-transformers folders
transfer      copies to and from a GPU that the host does not wait for
"""
