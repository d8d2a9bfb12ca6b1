"""Encoders and LLMs.

locate        finds and checks model folders; hashes their content
fingerprint   identity of an encoder or of labels
encoder       texts to unit vectors; loading and export of an encoder
onnx          an encoder on the CPU through ONNX Runtime
onednn        linear layers through oneDNN, packed or trained
causal_lm     the LLM that gives the feedback
device        memory that a CPU process keeps; the fastest matrix product of a device
st_folder     sentence-transformers folders
"""
