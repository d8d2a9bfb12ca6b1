"""The parts of the training benchmark; each prints its table and gives the figures for the JSON file."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.labelling_limit import product_rates
from benchmarks.labelling_rounds import ForeignLoad, Spread, Times, ratios, time_each
from benchmarks.training_groups import CANDIDATES, SOURCES, Workbench, batches_of
from benchmarks.training_limit import necessary_flops, time_shares
from benchmarks.training_rivals import PaddedLoop, peer_columns, peer_loss, peer_model, train_peer
from benchmarks.training_workers import peak_memory, steps_on_workers
from embedder.training.deepspeed_engine import TrainingEngine
from embedder.training.estimate import known_chunk_tokens
from embedder.training.gradient import accumulate_gradient
from embedder.training.job import TrainingJob
from embedder.training.learners import trainable_encoder
from embedder.training.loop import Trainer
from embedder.training.objective import Objective
from embedder.training.token_batches import TokenLimits, token_batches
from embedder.training.training_rows import Batch

Found = dict[str, Any]
WAYS = {"ours": "ours", "padded": "plain padded loop", "peer": "sentence-transformers"}
EQUAL_QUERIES = 4
WORKER_STEPS = 3
"""The first of which is not timed."""
MANY_QUERIES = 512
LARGE = 64
QUIET = 0.15
"""Cores that other processes may keep busy in a round that counts."""
LEAST_ROUNDS = 2
Round = dict[str, Any]
Gradients = dict[str, Tensor]


def equality(bench: Workbench, rounds: int) -> Found:
    """Whether all ways compute the same: loss and gradient of one batch, before anything is timed."""
    del rounds
    found: Found = {}
    print("\nloss and gradient of one batch; difference of the gradients to the padded loop's, of the largest entry")
    for task, (_, loss) in SOURCES.items():
        job = bench.job(task, EQUAL_QUERIES, 1)
        batch = batches_of(job)[0]
        batch = _all_different(batch)
        padded = PaddedLoop(job)
        loss_value = padded.loss(batch)
        loss_value.backward()
        value = float(loss_value.detach())
        plain = {name: weight.grad for name, weight in padded.encoder.named_parameters() if weight.grad is not None}
        found[task] = {"loss": value}
        for way, gradients in (("ours", our_gradient), ("peer", peer_gradient)):
            other, slopes = gradients(job, batch)
            found[task][way] = {"loss": other, "gradient": farthest(slopes, plain)}
            print(
                f"  {task} ({loss}) {WAYS[way]}: loss {other:.6f} for {value:.6f}, gradient off by "
                f"{found[task][way]['gradient']:.1e}"
            )
    return found


def our_gradient(job: TrainingJob, batch: Batch) -> tuple[float, Gradients]:
    """Loss and gradient as the trainer takes them."""
    encoder = trainable_encoder(job, "cpu")
    engine = TrainingEngine(encoder, job.config)
    limits = TokenLimits(job.encoder.batch_tokens, known_chunk_tokens(job.config))
    batches = token_batches(encoder, encoder.tokenize(batch.prompted(job.tasks)), limits)
    objective = Objective.of(job.tasks, job.config)
    weight_B = torch.ones(len(batch.tasks))
    loss_B = accumulate_gradient(engine, batches, lambda vectors: objective.batch_losses(vectors, batch), weight_B)
    weights = encoder.named_parameters()
    return float(loss_B.mean()), {name: weight.grad.clone() for name, weight in weights if weight.grad is not None}


def peer_gradient(job: TrainingJob, batch: Batch) -> tuple[float, Gradients]:
    """The same of sentence-transformers, whose KL carries a factor of the temperature squared, which is taken out."""
    model = peer_model(job).train()
    task = batch.tasks[0]
    columns = peer_columns(job, [batch])
    labels = torch.tensor(columns.pop("label")) if "label" in columns else torch.empty(0)
    features = [model.preprocess(texts) for texts in columns.values()]
    factor = job.config.temperature**2 if job.tasks[task].loss == "kl" else 1.0
    loss = peer_loss(model, job, task)(features, labels) / factor
    loss.backward()
    weights = model.get_submodule("0.auto_model").named_parameters()
    return float(loss.detach()), {
        f"backbone.{name}": weight.grad for name, weight in weights if weight.grad is not None
    }


def farthest(found: Gradients, expected: Gradients) -> float:
    """The greatest difference of two gradients, as a share of the greatest entry of the expected one."""
    largest = max(float(slope.abs().max()) for slope in expected.values())
    return max(float((found[name] - slope).abs().max()) for name, slope in expected.items()) / largest


def _all_different(batch: Batch) -> Batch:
    """The batch with no two candidates known as equal: sentence-transformers masks no false negatives."""
    batch.identity_BM3.copy_(torch.arange(batch.identity_BM3.numel()).view(batch.identity_BM3.shape))
    batch.known_BP.fill_(-1)
    return batch


def speed(batch_size: int, bench: Workbench, rounds: int) -> Found:
    """Samples/s of the three ways over both tasks, and ours as a share of the limit.

    Large batches are timed a round less, without one before to warm up. Rounds in which other processes kept more than
    QUIET cores busy are kept apart where enough others are left.
    """
    warm = batch_size < LARGE
    rounds = rounds if warm else max(LEAST_ROUNDS, rounds - 1)
    made: list[Round] = [{"seconds": {}} for _ in range(rounds)]
    for task in SOURCES:
        for number, one in enumerate(_timed(bench.job(task, batch_size, rounds + warm))[int(warm) :]):
            made[number]["seconds"][task] = one["seconds"]
            for name in ("flops", "rate", "foreign_cores"):
                made[number].setdefault(name, []).append(one[name])
    quiet = [one for one in made if max(one["foreign_cores"]) <= QUIET]
    taken = quiet if len(quiet) >= LEAST_ROUNDS else made
    totals: list[Times] = [{way: sum(one["seconds"][task][way] for task in SOURCES) for way in WAYS} for one in taken]
    found: Found = {"rounds": made, "rounds_taken": len(taken)}
    print(f"\n{batch_size} queries a step with {CANDIDATES} candidates each, a step of each task a round; samples/s")
    print(
        f"  {len(taken)} of {rounds} rounds taken; other processes kept at most "
        f"{max(max(one['foreign_cores']) for one in taken):.2f} cores busy in them"
    )
    for way, name in WAYS.items():
        found[way] = [batch_size * len(SOURCES) / times[way] for times in totals]
        each = {task: batch_size / median(one["seconds"][task][way] for one in taken) for task in SOURCES}
        print(f"  {name:<24} {Spread(found[way])}; {_named(each)}")
    for other in ("peer", "padded"):
        spread = ratios(totals, other, "ours")
        found[f"vs_{other}"] = spread.values
        each = {task: ratios([one["seconds"][task] for one in taken], other, "ours").median for task in SOURCES}
        print(f"  ours against {WAYS[other]}: {spread}; {_named(each)}")
    found["share_of_limit"] = [
        sum(one["flops"]) / times["ours"] / max(one["rate"]) for one, times in zip(taken, totals, strict=True)
    ]
    print(f"  ours, share of the fastest matrix product: {Spread(found['share_of_limit'])}")
    return found


def _named(values: dict[str, float]) -> str:
    return ", ".join(f"{task} {value:.3g}" for task, value in values.items())


def _timed(job: TrainingJob) -> list[Round]:
    """By round: seconds of each way, necessary operations, operations a second of the fastest product, foreign load."""
    batches = batches_of(job)
    ours, padded = Trainer(job), PaddedLoop(job)
    rounds: list[Round] = []
    load = ForeignLoad()

    def turn(step: int, seconds: float) -> None:
        nonlocal load
        times = {"peer": seconds}
        ways: dict[str, Callable[[], object]] = {"ours": ours.step, "padded": partial(padded.step, batches[step])}
        for name, way in ways.items():
            times |= time_each({name: way})
            release_freed_memory()
        one: Round = {"seconds": times, "foreign_cores": load.cores()}
        one["flops"] = necessary_flops(padded.encoder, batches[step], job.tasks)
        one["rate"] = max(product_rates(1).values())
        rounds.append(one)
        load = ForeignLoad()

    train_peer(job, batches, turn)
    return rounds


def release_freed_memory() -> None:
    """Give the system back what a way has freed: with 64 long groups no two of them fit into 16 GB together."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def profile(bench: Workbench, rounds: int) -> Found:
    """Where a step of ours spends its time, by kind of operation."""
    del rounds
    found: Found = {}
    print("\nshares of a step's wall time, 16 queries")
    for task in SOURCES:
        trainer = Trainer(bench.job(task, 16, 3))
        trainer.step()
        found[task] = time_shares(trainer.step)
        print(f"  {task}: " + ", ".join(f"{part} {share:.1%}" for part, share in found[task].items()))
    return found


def workers(bench: Workbench, rounds: int) -> Found:
    """Samples/s of one and of two workers with a thread each, on the same global batches."""
    seconds: list[Times] = []
    for _ in range(max(1, rounds - 1)):
        times = {}
        for count in (1, 2):
            job = bench.job("qa", 16, WORKER_STEPS, num_workers=count)
            times[str(count)] = sum(steps_on_workers(job, threads=1)[1:])
        seconds.append(times)
    gain = ratios(seconds, "1", "2")
    print(f"\ntwo workers against one, a thread each, 16 queries of qa: {gain} times the samples/s")
    return {"seconds": seconds, "two_workers_vs_one": gain.values}


def memory(bench: Workbench, rounds: int) -> Found:
    """Peak memory of a process that makes one step of 512 queries with 8 candidates each."""
    del rounds
    began = time.perf_counter()
    peak = peak_memory(bench.job("qa", MANY_QUERIES, 1), threads=torch.get_num_threads())
    seconds = time.perf_counter() - began
    print(
        f"\none step of {MANY_QUERIES} queries x {CANDIDATES}: peak {peak / 1e9:.2f} GB, {seconds:.0f} s with the start"
    )
    return {"peak_bytes": peak, "seconds": seconds}


PARTS: dict[str, Callable[[Workbench, int], Found]] = {
    "equality": equality,
    "16": partial(speed, 16),
    "64": partial(speed, 64),
    "profile": profile,
    "workers": workers,
    "memory": memory,
}
