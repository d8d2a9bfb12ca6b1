"""Layers of a network compiled by torch: on a GPU fewer and larger kernels, for the seconds that compiling takes once.

Between their matrix products the layers of a model are many small steps, each of which reads and writes all states of
a batch. Compiled, those that follow one another are one kernel.
"""

from __future__ import annotations

import logging
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch.utils._triton import has_triton
from transformers.modeling_layers import GradientCheckpointingLayer

logger = logging.getLogger(__name__)


def compiler_lacks() -> str | None:
    """What compiling for a GPU needs and this machine has not; None: nothing."""
    if not has_triton():
        return "Triton"
    # Triton compiles a small C program for each kernel, which includes Python's header.
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "a C compiler (gcc)"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if header.is_file() else f"{header} (python3-dev)"


def compile_layers(network: nn.Module, is_right: Callable[[], bool]) -> bool:
    """Compile the layers of a network for batches of any shape; it stays as it is, and False, where that goes wrong.

    Args:
        network: Of transformers, which derives all its layers from one class.
        is_right: Runs the network, and tells whether it gives what it gave before.
    """
    layers = [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        # For any number and length of rows at once: every new shape would be compiled anew otherwise.
        layer.compile(dynamic=True)
    try:
        reason = "its results are others" if not is_right() else None
    except TorchDynamoException as error:
        reason = str(error).partition("\n")[0]
    if reason is not None:
        for layer in layers:
            layer._compiled_call_impl = None
        logger.warning("%s runs uncompiled, which is slower: %.300s", type(network).__name__, reason)
    return reason is None
