"""DeepSpeed around the network; the only file that knows it.

Weights and the optimiser's state leave and enter it whole, named by the weight they belong to: what a checkpoint holds
depends on neither the number of workers nor the ZeRO stage.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.utils import clip_grad_norm_
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_get_local_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from torch.nn import Parameter

from embedder.config.train import TrainConfig
from embedder.models.encoder import PaddedRows, TextEncoder
from embedder.models.transfer import begin_reading
from embedder.training.cross_encoder import CrossEncoder
from embedder.training.distributed import join_workers, rank, share_first, world_size

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a weight."""


class TrainingEngine:
    """Forward, backward and update of a network whose state DeepSpeed spreads over the workers.

    Gradients of any number of `backward` calls add up until `update`. Where `lockstep` is true, all workers must call
    the network and `backward` equally often.
    """

    def __init__(self, network: TextEncoder | CrossEncoder, config: TrainConfig) -> None:
        """Take over a network that holds the weights to start from; weight decay spares biases and normalisation."""
        join_workers(network.device)
        if network.device.type == "cpu":
            # The shared-memory all-reduce is compiled at first use, which needs a C++ compiler; gloo does without.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._trained = [(name, weight) for name, weight in network.named_parameters() if weight.requires_grad]
        self.size = sum(weight.numel() for _, weight in self._trained)
        """How many weights are trained; at stage 3 those that this worker holds would be fewer from here on."""
        decayed = [weight for _, weight in self._trained if weight.ndim > 1]
        spared = [weight for _, weight in self._trained if weight.ndim <= 1]
        # One kernel for all weights of a GPU, in place of some for each step of the formula.
        self._fused = network.device.type == "cuda" and not config.offload_optimizer
        self._adam = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}],
            lr=config.learning_rate,
            fused=self._fused or None,
        )
        self.network = network
        self._stage = config.zero_stage
        self._engine, *_ = deepspeed.initialize(model=network, optimizer=self._adam, config=_settings(config))
        self._read_norm: Callable[[], list[float]] = list
        if self._stage == 0:
            # Replaced, because at this stage DeepSpeed takes the norm and keeps it to itself.
            self._engine.clip_fp32_gradients = self._clip
        self._begin_moments(updates=0)

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def lockstep(self) -> bool:
        """Whether a forward or backward pass waits for those of the other workers."""
        return self._stage >= 2 and world_size() > 1

    @property
    def can_repeat(self) -> bool:
        """Whether a step whose gradient was broken off can be begun anew, by `forget`."""
        # Else parts of the gradient are in DeepSpeed's buffers already, or other workers wait for this one's.
        return self._stage == 0 and world_size() == 1

    def __call__(self, rows: PaddedRows) -> Tensor:
        """The network's outputs: unit vectors (B, D) or scores (B,) of the rows."""
        outputs: Tensor = self._engine(rows)
        return outputs

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradient; the mean over workers is taken at the update."""
        self._engine.backward(loss)

    def forget(self) -> None:
        """Drop the gradient of a step that was broken off."""
        self._engine.zero_grad()

    def update(self, learning_rate: float) -> float:
        """Clip the gradient, change the weights and forget it; returns its norm before it was clipped.

        The norm is that of the mean over all workers, the same on each. Where it is not finite, the weights are worth
        nothing any more, or DeepSpeed has left the step out. A GPU may still be changing the weights.
        """
        # Set by hand, because DeepSpeed's schedules count its own steps and know no paces of tasks.
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        if self._stage:
            # Infinite where a gradient was not finite, whatever it was: then DeepSpeed does not step.
            return float(self._engine.get_global_grad_norm())
        (norm,) = self._read_norm()
        return norm

    def _clip(self) -> None:
        weights, most = self.network.parameters(), self._engine.gradient_clipping()
        # DeepSpeed's own makes a GPU's host wait, and launches kernels for each weight.
        clip = nn.utils.clip_grad_norm_ if self.device.type == "cuda" else clip_grad_norm_
        # Read from here on and not after the update, which then goes on while the host has the norm.
        self._read_norm = begin_reading(clip(weights, most).reshape(1))

    def weights(self) -> dict[str, Tensor]:
        """The trained weights on the first worker, empty on the others; all workers must call it."""
        found = {}
        for name, weight in self._trained:
            # At stage 3 a weight is whole only inside this block, which all workers must enter in the same order.
            with deepspeed.zero.GatheredParameters([weight]) if self._stage == 3 else nullcontext():
                if rank() == 0:
                    found[name] = weight.detach().cpu().clone()
        return found

    def put(self, weights: dict[str, Tensor]) -> None:
        """Give the trained weights values that the first worker has; all workers must call it.

        No update may follow, because the optimiser keeps its own copy of what it has spread over the workers.
        """
        for name, weight in self._trained:
            # At stage 3 the block hands what the first worker has written to the others, else they are sent it here.
            is_whole = self._stage != 3
            with torch.no_grad(), nullcontext() if is_whole else deepspeed.zero.GatheredParameters([weight], 0):
                if rank() == 0:
                    weight.copy_(weights[name])
                if is_whole:
                    share_first(weight)

    def moments(self) -> dict[str, Tensor]:
        """AdamW's state as `WEIGHT.exp_avg` and so on, on the first worker, empty on the others; all must call it."""
        found = {}
        for name, weight in self._trained:
            for key in MOMENTS:
                whole = safe_get_full_optimizer_state(weight, key) if self._stage else self._adam.state[weight][key]
                if rank() == 0:
                    found[f"{name}.{key}"] = whole.detach().cpu().clone()
        return found

    def restore_moments(self, moments: dict[str, Tensor], updates: int) -> None:
        """Undo `moments` on a worker of a group of any size, after so many updates."""
        self._begin_moments(updates)
        for name, weight in self._trained:
            for key in MOMENTS:
                self._set_moment(weight, key, moments[f"{name}.{key}"])

    def _begin_moments(self, updates: int) -> None:
        """Moments of zero, made before the first step: DeepSpeed 0.19.8 would find only those of the first group."""
        for flat in self._flat_weights():
            # With the step beside the moments: Adam's correction for its first steps must not begin anew at a resume.
            zeros = {key: torch.zeros_like(flat) for key in MOMENTS}
            count = torch.tensor(float(updates), device=flat.device if self._fused else "cpu")
            self._adam.state[flat] = {"step": count, **zeros}
        if self._stage in (1, 2):
            # DeepSpeed links its views of the state once, at the first update; the state is another one now.
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _flat_weights(self) -> list[Tensor]:
        """The tensors under which the optimiser keeps its state."""
        if self._stage == 3:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [flat for group in self._adam.param_groups for flat in group["params"]]

    def _set_moment(self, weight: Parameter, key: str, value: Tensor) -> None:
        match self._stage:
            case 0:
                self._adam.state[weight][key].copy_(value)
            case 3:
                # Each worker holds one of equal parts, the last filled up with zeros.
                size = safe_get_local_optimizer_state(weight, key).numel()
                padded = torch.zeros(size * world_size(), dtype=value.dtype)
                padded[: value.numel()] = value.flatten()
                safe_set_local_optimizer_state(weight, padded[rank() * size : (rank() + 1) * size], key)
            case _:
                safe_set_full_optimizer_state(weight, value.to(weight.device), key)


def _settings(config: TrainConfig) -> dict[str, Any]:
    """DeepSpeed's configuration. The caller alone says where a step ends, after any number of backward passes."""
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        # DeepSpeed demands it, but nothing here depends on it: each backward pass has the rows that it is given.
        "train_micro_batch_size_per_gpu": 1,
        # Else DeepSpeed scales each loss by a fixed number of passes a step, and ours has as many as chunks.
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.gradient_clip,
        # Else it waits for the GPU at each forward pass, to measure a speed that nobody reads.
        "timers": {"throughput": {"enabled": False}},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # Its own Adam on the CPU is compiled at first use, which needs a C++ compiler; torch's does as well.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
