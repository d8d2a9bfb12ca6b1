"""Layers of a network compiled by torch: on a GPU fewer and larger kernels, for the seconds that compiling takes once.

Between their matrix products the layers of a model are many small steps, each of which reads and writes all states of
a batch. Compiled, those that follow one another are one kernel.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from embedder.models.memory import is_memory_error

logger = logging.getLogger(__name__)

INDUCTOR = "inductor"
"""The compiler of torch that makes kernels. Tests take one that needs no compiler of C."""


def lacking_compiler() -> str | None:
    """What is missing here of that which compiles kernels for a GPU; None: nothing."""
    if find_spec("triton") is None:
        return "Triton"
    # Triton compiles a small C program for each kernel, which includes Python's header.
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "a C compiler (gcc)"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if header.is_file() else f"{header} (python3-dev)"


def compiler_errors() -> tuple[type[Exception], ...]:
    """What the first calls of compiled layers may raise.

    torch's own errors are RuntimeErrors, but what goes wrong where a kernel is first launched (by the C compiler, for a
    library, with too large a kernel) comes as it is.
    """
    found = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, ImportError, OSError)
    # By name, because there is no Triton for CPUs.
    triton = (import_module("triton.errors").TritonError,) if find_spec("triton") else ()
    return (*found, subprocess.SubprocessError, *triton)


def compile_layers(network: nn.Module, compiler: str = INDUCTOR) -> None:
    """Have each layer of a network of transformers compiled when it is first called."""
    for layer in _layers(network):
        # For any number and length of rows at once: each new shape would be compiled for anew otherwise.
        layer.compile(dynamic=True, backend=compiler)


def compile_tried(network: nn.Module, is_right: Callable[[], bool], compiler: str = INDUCTOR) -> bool:
    """Compile the layers of a network; it stays as it was, and False, where that goes wrong.

    `is_right` runs the network, and tells whether it gives what it gave before. Short memory says nothing of the
    compiler, and is raised.
    """
    compile_layers(network, compiler)
    try:
        reason = None if is_right() else "its results are others"
    except compiler_errors() as error:
        if is_memory_error(error):
            raise
        reason = str(error).partition("\n")[0]
    if reason is not None:
        for layer in _layers(network):
            layer._compiled_call_impl = None
        logger.warning("%s runs uncompiled, which is slower: %.300s", type(network).__name__, reason)
    return reason is None


def _layers(network: nn.Module) -> list[nn.Module]:
    # The base class of the layers of all models of transformers.
    return [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]
