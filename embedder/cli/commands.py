"""What can be typed after `llm-embedder`. Everything that takes time to import is imported by the command that uses it.

Exit statuses: 0 done; 1 a defect of this program, with a traceback; 2 an error that you can fix, in one line, or
`doctor` found one; 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from embedder.cli.launch import SERVICE_URL, need, start
from embedder.console import exit_on_error

STATUSES = """Exit status: 0 done; 1 a defect, with a traceback; 2 an error that you can fix, in one line with its place
and remedy; 130 interrupted by Ctrl-C, after which the same command goes on from what is done."""
JOBS = {
    "prepare": "Read the sources into checked rows.",
    "questions": "Let the LLM write questions for a corpus that has none.",
    "mine": "Find candidates of each training query.",
    "label": "Reward the candidates by the LLM.",
    "train": "Teach the encoder from the rewards.",
    "evaluate": "Compare the encoder before and after.",
    "pipeline": "Run every stage that is not done, one after the other.",
}
"""The jobs that take no more than a run file; `index` has commands below it."""
ORDER = (
    *("init", "doctor", "prepare", "questions", "mine", "label", "train", "index", "evaluate", "pipeline"),
    *("status", "submit", "serve", "ask", "mcp"),
)
"""The commands as the help lists them: in the order in which they are used."""

RunFile = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="Run file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Setting over the file's; repeatable.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check, tell the work ahead and its cost, and stop.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
RUN_FILE = Path("run.yaml")


class UsedInOrder(TyperGroup):
    """Lists the commands in the order of `ORDER`."""

    def list_commands(self, ctx: object) -> list[str]:
        """Their names."""
        return sorted(self.commands, key=ORDER.index)


APP = typer.Typer(
    cls=UsedInOrder,
    help="Teach a text embedder with an LLM's feedback, and serve it.",
    epilog=STATUSES,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
INDEX = typer.Typer(rich_markup_mode=None, invoke_without_command=True)


def words_of(config: Path, overrides: list[str] | None, *further: str) -> list[str]:
    """The options that every job takes, word by word."""
    return ["--config", str(config), *(word for given in overrides or [] for word in ("--set", given)), *further]


@APP.command()
def init(
    data: Annotated[
        list[Path] | None, typer.Argument(help="Folder or file of your data; several become one run.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Your questions about the documents in DATA (train.jsonl).")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Run file to write.")] = RUN_FILE,
    task: Annotated[str | None, typer.Option(help="Task of the data; by default what its rows look like.")] = None,
    work: Annotated[str | None, typer.Option(help="Folder, or s3:// or gs:// URI, of all that the run writes.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Encoder: a folder, a hub name, or package:NAME/FOLDER.")] = None,
    llm: Annotated[str | None, typer.Option(help="LLM that teaches, in the same forms; `none` for no LLM.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs to use; by default those of this machine.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take what is found and the defaults.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a run file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Look at your data and write a run file for it, with comments."""
    from embedder.cli.new_run import Wishes, write_new_run

    asks = not (yes or as_json)
    wishes = Wishes(tuple(data or ()), questions, out, task, work, encoder, llm, gpus, asks=asks, replaces=force)
    with exit_on_error(to_stderr=True):
        written = write_new_run(wishes)
    show(written.record(), as_json, written.lines())


@APP.command()
def doctor(
    config: RunFile = RUN_FILE,
    overrides: Overrides = None,
    cluster: Annotated[bool, typer.Option(help="Look at the Ray cluster that RAY_ADDRESS names, too.")] = True,
    as_json: Json = False,
) -> None:
    """Tell what will not work on this machine or cluster, and why."""
    from embedder.cli.findings import WORST, look_around

    with exit_on_error(to_stderr=True):
        found = look_around(config, overrides or [], asks_cluster=cluster)
    show([finding.record() for finding in found], as_json, [finding.line() for finding in found])
    if any(finding.level == WORST for finding in found):
        raise typer.Exit(2)


def add_job(stage: str, told: str) -> None:
    """Add the command of a job, whose exit status is the job's."""

    @APP.command(stage, help=told)
    def run_job(config: RunFile = RUN_FILE, overrides: Overrides = None, dry_run: DryRun = False) -> None:
        run_module(f"ray_jobs.{stage}", words_of(config, overrides, *(["--dry-run"] if dry_run else [])))


for _stage, _told in JOBS.items():
    if _stage != "label":
        add_job(_stage, _told)


@APP.command("label", help=JOBS["label"])
def label(
    config: RunFile = RUN_FILE,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    sample: Annotated[
        int | None,
        typer.Option("--sample", metavar="N", help="Label N groups of each task here, and tell whether to trust them."),
    ] = None,
) -> None:
    """The job `label`."""
    flags = [*(["--dry-run"] if dry_run else []), *(["--sample", str(sample)] if sample is not None else [])]
    run_module("ray_jobs.label", words_of(config, overrides, *flags))


def run_module(module: str, words: list[str]) -> None:
    """Become another command."""
    with exit_on_error(to_stderr=True):
        start(module, words)


@INDEX.callback()
def index(
    context: typer.Context, config: RunFile = RUN_FILE, overrides: Overrides = None, dry_run: DryRun = False
) -> None:
    """Build a version of the index; `index list` lists them all."""
    if context.invoked_subcommand is None:
        run_module("ray_jobs.index", words_of(config, overrides, *(["--dry-run"] if dry_run else [])))
    context.obj = (config, overrides)


@INDEX.command("list")
def list_index(
    context: typer.Context, config: RunFile = RUN_FILE, overrides: Overrides = None, as_json: Json = False
) -> None:
    """List the versions of the index, their documents, and the aliases that name them."""
    from embedder.run.run_status import index_versions

    before, sets = context.obj
    with exit_on_error(to_stderr=True):
        versions = index_versions(before if config == RUN_FILE else config, [*(sets or []), *(overrides or [])])
    show([asdict(version) for version in versions], as_json, [version.line for version in versions])


APP.add_typer(INDEX, name="index")


@APP.command()
def submit(
    stage: Annotated[
        str, typer.Argument(help="Job to submit: prepare, questions, mine, label, train, index, evaluate, pipeline.")
    ],
    config: RunFile = RUN_FILE,
    overrides: Overrides = None,
    run: Annotated[bool, typer.Option("--run", help="Submit it; without, the line is printed alone.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the job ends, and end as it does.")] = False,
) -> None:
    """Print the `ray job submit` line of a job, or run it."""
    flags = [word for word, given in (("--run", run), ("--wait", wait)) if given]
    run_module("ray_jobs.submit", [*words_of(config, overrides, *flags), stage])


@APP.command()
def serve(
    config: RunFile = RUN_FILE,
    overrides: Overrides = None,
    host: Annotated[str, typer.Option(help="Where it listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    name: Annotated[str, typer.Option(help="Name of the service, if several run on one Ray.")] = "embedder",
    route_prefix: Annotated[str, typer.Option(help="What all its paths begin with.")] = "/",
) -> None:
    """Serve the index of a run on this machine until Ctrl-C."""
    where = ["--host", host, "--port", str(port), "--name", name, "--route-prefix", route_prefix]
    run_module("serve.start", words_of(config, overrides, *where))


@APP.command()
def ask(
    query: Annotated[str, typer.Argument(help="What to search for.")],
    task: Annotated[
        str | None, typer.Option(help="Task whose documents are searched; needed if there are several.")
    ] = None,
    count: Annotated[int, typer.Option("-k", min=1, help="Hits.")] = 5,
    mode: Annotated[str, typer.Option(help="dense (vectors), lexical (words), or hybrid (both).")] = "dense",
    url: Annotated[str, typer.Option(envvar="LLM_EMBEDDER_URL", help="Where the service answers.")] = SERVICE_URL,
    index_name: Annotated[
        str | None, typer.Option("--index", help="Alias of the index; by default the service's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Search the index of a service that runs. A key is taken from LLM_EMBEDDER_KEY."""
    from embedder.cli.question import SearchWish, answer_lines, ask_service

    with exit_on_error(to_stderr=True):
        answer = ask_service(url, SearchWish(query, task, count, mode, index_name))
    show(answer, as_json, answer_lines(answer))


@APP.command()
def mcp(
    url: Annotated[str, typer.Option(envvar="LLM_EMBEDDER_URL", help="Where the service answers.")] = SERVICE_URL,
    task: Annotated[str | None, typer.Option(help="Task that is searched if a call names none.")] = None,
    index_name: Annotated[
        str | None, typer.Option("--index", help="Alias that is searched if a call names none.")
    ] = None,
) -> None:
    """Give agents the tool `search` of a service that runs, over MCP. A key is taken from LLM_EMBEDDER_KEY."""
    words = ["--url", url, *(["--task", task] if task else []), *(["--index", index_name] if index_name else [])]
    with exit_on_error(to_stderr=True):
        need("mcp", extra="mcp")
    run_module("serve.integrations.mcp_server", words)


@APP.command()
def status(
    config: RunFile = RUN_FILE,
    overrides: Overrides = None,
    quick: Annotated[bool, typer.Option("--quick", help="Trust the marks: compare no contents.")] = False,
    as_json: Json = False,
) -> None:
    """Tell what a run has done, what is missing, and what it cost."""
    from embedder.console import console, show_table
    from embedder.run.run_status import read_status

    with exit_on_error(to_stderr=True):
        found = read_status(config, overrides or [], compares=not quick)
    if not as_json:
        show_table(console(), found.table())
    show(found.record(), as_json, found.lines(config))


def show(record: Any, as_json: bool, lines: list[str]) -> None:  # noqa: ANN401 - whatever JSON can say
    """Print a result as JSON or as lines."""
    from embedder.console import console

    out = console()
    for line in [json.dumps(record, ensure_ascii=False, indent=2)] if as_json else lines:
        out.print(line, markup=False)
