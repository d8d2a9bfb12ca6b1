"""An encoder for vectors only: on a GPU by PyTorch (`gpu_encoder`), on a CPU through ONNX Runtime.

ONNX Runtime takes half to nine tenths of PyTorch's time for the same float32 layers (benchmarks/embedding.py). The
model is exported at each load and compared with PyTorch before it is used: an export can be wrong and run well.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as onnx_errors
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn
from torch.onnx import OnnxExporterError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from embedder.config.run import EncoderConfig
from embedder.errors import ModelError
from embedder.models.encoder import TextEncoder, encode_tokens, load_encoder
from embedder.models.gpu_encoder import prepare_on_gpu
from embedder.models.onednn import has_onednn, pack_linear_layers

logger = logging.getLogger(__name__)

NEAR = 1e-5
"""Largest difference of a component of a unit vector from PyTorch's."""
LEAST_COSINE = 0.99
"""Least mean cosine of vectors in 8 bits to PyTorch's, over `PROBES`."""
MOST_BYTES = 1_900_000_000
"""Most bytes of weights: an ONNX model in memory is a Protocol Buffers message, which ends at 2 GB."""
OPSET = 17
PROBES = (
    "Where does the sun rise?",
    "A model that was exported must give the vectors that it gave before.",
    "Speaker 1: where is the station?\nSpeaker 2: behind the old bridge, 5 minutes on foot (or 2 by bus).",
    "Each text is encoded alone and beside others, short and long, since an export may have fixed what varies. " * 40,
)
TRACING = (OnnxExporterError, RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError)
"""Errors that the export of a model raises which cannot be traced."""
RUNNING: tuple[type[Exception], ...] = tuple(
    error for error in vars(onnx_errors).values() if isinstance(error, type) and issubclass(error, Exception)
)
"""Errors that ONNX Runtime raises; they have no base of their own."""


class OnnxBackbone(nn.Module):
    """Takes the place of an encoder's backbone."""

    def __init__(self, model: bytes, config: PreTrainedConfig, lone_threads: int = 0) -> None:
        """Load an ONNX model, for as many threads as PyTorch has now.

        `lone_threads`: those of a second session, which holds the weights once more and computes a single row while
        nothing else is computed. 0: there is none.

        Raises:
            RuntimeError: ONNX Runtime cannot run it.
        """
        super().__init__()
        self.config = config
        self.device = torch.device("cpu")
        self._session = _session(model, torch.get_num_threads())
        self._lone = _session(model, lone_threads, is_lone=True) if lone_threads else None
        self._num_running = 0
        self._lock = threading.Lock()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutput:
        """The last hidden state (B, L, D) of token ids (B, L).

        Raises:
            RuntimeError: ONNX Runtime fails on them.
        """
        given = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        with self._lock:
            is_lone = not self._num_running and len(input_ids) == 1
            self._num_running += 1
        session = self._lone if is_lone and self._lone is not None else self._session
        try:
            (state_BLD,) = session.run(None, given)
        except RUNNING as error:
            raise RuntimeError(f"ONNX Runtime: {error}") from error
        finally:
            with self._lock:
                self._num_running -= 1
        return BaseModelOutput(last_hidden_state=torch.from_numpy(state_BLD))


def _session(model: bytes, threads: int, *, is_lone: bool = False) -> onnxruntime.InferenceSession:
    """Load a model.

    Raises:
        RuntimeError: ONNX Runtime cannot run it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if is_lone:
        # Its threads wait busily within a run, and not after it: other sessions need the processors then.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    # Errors alone: ONNX Runtime would warn of harmless traits of a traced model at each load.
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except RUNNING as error:
        raise RuntimeError(f"ONNX Runtime does not load it: {error}") from error


class _LastState(nn.Module):
    """The part of a backbone that is exported."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        state_BLD: Tensor = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return state_BLD


def load_inference_encoder(
    config: EncoderConfig, device: torch.device | str, compiled: bool = False, lone_threads: int = 0
) -> TextEncoder:
    """Load an encoder for vectors only, on the number of threads that PyTorch has.

    A model on the CPU that cannot be exported, or whose export gives other vectors, runs in PyTorch with its linear
    layers packed for oneDNN, and a warning says so. `compiled`: on a GPU its layers are compiled, for much work.
    `lone_threads`: as `OnnxBackbone` has them.

    Raises:
        ModelError: the folder is missing or has no weights; or 8 bits are asked for and the device, the model or its
            vectors do not allow it.
        DeviceError: the GPU cannot compute in the number format.
    """
    encoder = load_encoder(config, device)
    rows = encoder.tokenize(PROBES)
    if encoder.device.type != "cpu":
        prepare_on_gpu(encoder, rows, compiled)
        return encoder
    in_8_bits, encoder.in_bfloat16 = config.dtype == "int8", config.dtype == "bfloat16"
    if encoder.in_bfloat16:
        return encoder
    backbone, wanted_ND = encoder.backbone, _probed(encoder, rows)
    try:
        model = exported(backbone)
        encoder.backbone = OnnxBackbone(quantized(model) if in_8_bits else model, backbone.config, lone_threads)
        _check(_probed(encoder, rows), wanted_ND, in_8_bits)
    except TRACING as error:
        if in_8_bits:
            raise ModelError(
                f"{config.model} cannot be encoded in 8 bits: {error}; set its dtype to float32"
            ) from error
        logger.warning("%s is encoded by PyTorch, not by ONNX Runtime: %.300s", config.model, error)
        encoder.backbone = backbone
        if has_onednn():
            pack_linear_layers(backbone)
    return encoder


def exported(backbone: PreTrainedModel) -> bytes:
    """An ONNX model for any number and length of rows.

    Raises:
        RuntimeError, or another of TRACING: the model cannot be exported.
    """
    size = sum(weight.numel() * weight.element_size() for weight in backbone.state_dict().values())
    if size > MOST_BYTES:
        raise RuntimeError(f"{size:,} bytes of weights, and ONNX holds {MOST_BYTES:,} in memory")
    inputs = {"input_ids": {0: "rows", 1: "tokens"}, "attention_mask": {0: "rows", 1: "tokens"}}
    # A trace keeps the branches that this sample takes. So it is padded: a mask of ones would be left out of the model.
    ids_BL = torch.arange(5, 23).view(2, 9)
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, 5:] = 0
    attention = backbone.config._attn_implementation
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        path = Path(folder) / "model.onnx"
        warnings.simplefilter("ignore")
        # Plain products and a softmax, because fused attention chooses its way by the sizes of the sample.
        backbone.set_attn_implementation("eager")
        try:
            torch.onnx.export(
                _LastState(backbone),
                (ids_BL, mask_BL),
                path,
                dynamo=False,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=["last_hidden_state"],
                dynamic_axes={**inputs, "last_hidden_state": {0: "rows", 1: "tokens"}},
            )
        finally:
            backbone.set_attn_implementation(attention)
        return path.read_bytes()


def quantized(model: bytes) -> bytes:
    """The same with products in 8 bits: weights by output channel, rows by the whole batch.

    Weights use 7 bits, so that processors without VNNI do not saturate.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder) / "whole.onnx", Path(folder) / "small.onnx"
        whole.write_bytes(model)
        quantize_dynamic(whole, small, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
        return small.read_bytes()


def _probed(encoder: TextEncoder, rows: list[list[int]]) -> np.ndarray:
    """Vectors of each row alone, then of all together: an export may have fixed the number or length of rows."""
    alone = [encode_tokens(encoder, [row]) for row in rows]
    return np.concatenate([*alone, encode_tokens(encoder, rows)])


def _check(exported_ND: np.ndarray, wanted_ND: np.ndarray, int8: bool) -> None:
    """Compare an export's vectors with those of the model.

    Raises:
        RuntimeError: they are others.
    """
    cosine = float((exported_ND * wanted_ND).sum(1).mean())
    # Written as `not >=` and `not <=`, so that NaN fails.
    if int8 and not cosine >= LEAST_COSINE:
        raise RuntimeError(
            f"its vectors have a mean cosine of {cosine:.4f} to the model's, and {LEAST_COSINE} is asked"
        )
    if not int8 and not np.abs(exported_ND - wanted_ND).max() <= NEAR:
        raise RuntimeError(f"its vectors are not the model's (mean cosine {cosine:.4f})")
