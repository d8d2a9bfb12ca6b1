"""The run file: what loads, what is laid over it, and what is refused with which place."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from embedder.config.load import load_run, own_settings
from embedder.config.run import RunConfig
from embedder.config.tasks import BUILTIN_TASKS
from embedder.config.unknown_keys import RENAMED_KEYS, RENAMED_VALUES, locate_key
from embedder.errors import ConfigError

ROOT = Path(__file__).parents[2]
MINIMAL = "paths: {work: run}\nencoder: {model: owner/name, pooling: mean}\n"
OWN_TASK = "query_instruction: 'Q: ', passage_instruction: 'K: '"


def load(folder: Path, text: str, *overrides: str) -> RunConfig:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_run(path, list(overrides))


def refusal(folder: Path, text: str, *overrides: str) -> str:
    """The one line a bad run file is refused with."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


RUN_FILES = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.stem != "serve")
"""serve.yaml is one of Ray Serve."""


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_every_run_file_of_the_repository_loads(path):
    assert load_run(path).paths.work.is_absolute()


def test_the_resolved_run_file_that_a_dry_run_prints_loads_to_the_same_settings():
    config = load_run(ROOT / "configs" / "demo.yaml")
    printed = yaml.safe_load(yaml.safe_dump(own_settings(config), allow_unicode=True))
    assert RunConfig.model_validate(printed) == config


def test_a_minimal_run_file_gets_the_defaults(tmp_path):
    config = load(tmp_path, MINIMAL)
    assert (config.mine.group_size, config.label.num_samples, config.tasks) == (8, 10, BUILTIN_TASKS)
    assert config.paths.model == Path("run").absolute() / "model"


@pytest.mark.parametrize(
    ("settings", "groups"),
    [
        pytest.param([], 8, id="CPU"),
        pytest.param(["label.gpus_per_actor=0.5"], 32, id="GPU"),
        pytest.param(["label.gpus_per_actor=1", "label.unit_groups=8"], 8, id="as given"),
    ],
)
def test_label_config_units_are_larger_on_gpus(tmp_path, settings, groups):
    assert load(tmp_path, MINIMAL, *settings).label.groups_per_unit == groups


def test_nothing_changes_after_loading(tmp_path):
    config = load(tmp_path, MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        config.mine.seed = 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("paths: {work: run}", "encoder is missing; it needs model and pooling"),
        ("paths: {work: run}\nencoder: {model: m}", "encoder.pooling is missing; give one of 'cls', 'mean', 'last'"),
    ],
)
def test_a_setting_that_must_be_there_is_asked_for_with_what_it_needs(tmp_path, text, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        load(tmp_path, text)


REFUSED = {
    "key of another section": ("mine: {retrievers: [bm25]}", "did you mean evaluate.retrievers?"),
    "unknown value": ("evaluate: {split: tset}", "(value 'tset'; did you mean 'test'?)"),
    "unknown section": ("traim: {steps: 3}", "traim is not a setting; did you mean train?"),
    "unknown key": ("mine: {grup_size: 3}", "mine.grup_size is not a setting; did you mean mine.group_size?"),
    "unknown key of a source": (
        "prepare: {sources: [{task: qa, dataset: d, path: p, limit: 3}]}",
        "prepare.sources.0.limit is not a setting (docs/configuration.md has all)",
    ),
    "wrong type": ("mine: {group_size: many}", "mine.group_size: "),
    "null section": ("mine: null", "mine: "),
    "value out of range": ("label: {num_samples: 0}", "label.num_samples: "),
    "share of probability out of range": ("label: {top_p: 0}", "label.top_p: "),
    "more least actors than greatest": (
        "label: {min_actors: 3, num_actors: 2}",
        "label: min_actors 3 exceeds num_actors 2",
    ),
    "scores of a format that has none": (
        "prepare: {sources: [{task: qa, dataset: d, path: p, teacher_scores: true}]}",
        "prepare.sources.0: teacher_scores is true, but format is 'layout'",
    ),
    "teacher without a section": ("label: {teacher: reranker}", "label.teacher is 'reranker'"),
    "empty stop text": (
        "tasks: {qa: {template: {context: x, input: x, stop: ''}}}",
        "tasks.qa.template.stop: stop holds an empty text",
    ),
    "reward not offered": ("tasks: {qa: {reward: win}}", "tasks.qa.reward: "),
    "value not offered": ("llm: {model: m, dtype: float64}", "llm.dtype: "),
    "empty window": ("mine: {window: [5, 5]}", "mine: window is [5, 5]"),
    "no sources": ("prepare: {sources: []}", "prepare.sources: "),
    "dataset name that leaves the folder": (
        "prepare: {sources: [{task: qa, dataset: ../d, path: p}]}",
        "prepare.sources.0.dataset: ",
    ),
    "unknown task of a source": ("prepare: {sources: [{task: qb, dataset: d, path: p}]}", "'d' has task 'qb'"),
    "two datasets of one name": (
        "prepare: {sources: [{task: qa, dataset: d, path: p}, {task: tool, dataset: d, path: q}]}",
        "two sources are called 'd'",
    ),
    "batch the workers cannot share": (
        "train: {steps: 3, batch_size: 9, num_workers: 2}",
        "train: batch_size 9 is not a multiple of num_workers 2",
    ),
    "layers compiled for a CPU": (
        "train: {steps: 3, compile_layers: true}",
        "train: compile_layers needs a GPU a worker and zero_stage 0, 1 or 2, but gpus_per_worker is 0",
    ),
    "layers compiled that ZeRO takes apart": (
        "train: {steps: 3, compile_layers: true, gpus_per_worker: 1, zero_stage: 3}",
        "gpus_per_worker is 1 and zero_stage 3; leave it out",
    ),
    "GPUs that stay idle": (
        "train: {steps: 3, gpus_per_worker: 2}",
        "train: gpus_per_worker is 2, but a worker trains on one",
    ),
    "an LLM for one of two GPUs": (
        "llm: {model: owner/llm}\nlabel: {gpus_per_actor: 2}",
        "label.gpus_per_actor is 2, but with llm.device_map 'single' an actor uses one GPU; set llm.device_map: auto",
    ),
    "half a GPU too much": ("evaluate: {gpus_per_actor: 1.5}", "evaluate.gpus_per_actor is 1.5; give a whole number"),
    "replay of nothing": ("train: {steps: 3, replay: {runs: [], share: 0.2}}", "train.replay.runs: "),
    "replay of everything": ("train: {steps: 3, replay: {runs: [{work: a}], share: 1}}", "train.replay.share: "),
    "negative weight": ("train: {steps: 3, task_weights: {qa: -1}}", "train.task_weights.qa: "),
    "no task with a weight": ("train: {steps: 3, task_weights: {qa: 0}}", "leave no task to train"),
    "mix by weights and by temperature": (
        "train: {steps: 3, task_weights: {qa: 1}, mix_temperature: 2}",
        "train: task_weights are given, so mix_temperature 2.0 says nothing",
    ),
    "temperature that favours the large tasks": ("train: {steps: 3, mix_temperature: 0.5}", "train.mix_temperature: "),
    "unknown kind of batch": ("train: {steps: 3, batches: alternating}", "train.batches: "),
    "unknown way of exhausted tasks": ("train: {steps: 3, exhausted: stop}", "train.exhausted: "),
    "prefix without a dimension": (
        "train: {steps: 3, matryoshka_dimensions: [64, 0]}",
        "train.matryoshka_dimensions.1: ",
    ),
    "pace that may never be 1": ("train: {steps: 3, self_paced: {bounds: [1.5, 2]}}", "bounds is [1.5, 2.0]"),
    "pace that may be 0": ("train: {steps: 3, self_paced: {bounds: [0, 2]}}", "bounds is [0.0, 2.0]"),
    "weight of an unknown task": ("train: {steps: 3, task_weights: {qb: 1}}", "train.task_weights names 'qb'"),
    "reward without template": (
        f"tasks: {{mine: {{{OWN_TASK}, reward: rank, loss: kl}}}}",
        "tasks.mine.reward is 'rank'",
    ),
    "loss without reward": (f"tasks: {{mine: {{{OWN_TASK}, loss: kl}}}}", "tasks.mine.loss is 'kl'"),
    "reference loss without reward": (
        "tasks: {tool: {loss: reference}}",
        "tasks.tool.loss is 'reference', which needs",
    ),
    "own answers of which none is sampled": (
        "tasks: {qa: {reward: own_answers}}\nlabel: {num_samples: 0, corpus_outputs: 3}",
        "tasks.qa.reward is 'own_answers', but label.num_samples is 0: the LLM would write nothing",
    ),
    "false negatives for a loss that learns from rewards": (
        "tasks: {qa: {false_negatives: drop}}",
        "tasks.qa.false_negatives is 'drop', but loss 'graded' learns from the rewards themselves; leave it out",
    ),
    "false negatives without rewards": (
        "tasks: {tool: {false_negatives: relabel}}",
        "tasks.tool.false_negatives is 'relabel', but reward is 'none', so that nothing tells them",
    ),
    "temperature for a loss that knows none": (
        "tasks: {qa: {loss: reference, reward_temperature: 0.5}}",
        "tasks.qa.loss is 'reference', which knows no temperature, but reward_temperature is 0.5",
    ),
    "task without instruction": ("tasks: {mine: {query_instruction: x}}", "tasks.mine.passage_instruction is missing"),
    "task that is no mapping": ("tasks: {qa: 3}", "tasks.qa is 3"),
    "template that reaches into objects": (
        "tasks: {qa: {template: {context: x, input: '{query.__class__}'}}}",
        "tasks.qa.template.input: field {query.__class__}",
    ),
    "template with a format": (
        "tasks: {qa: {template: {context: x, input: '{query!r}'}}}",
        "tasks.qa.template.input: field {query}",
    ),
    "template with an open brace": (
        "tasks: {qa: {template: {context: 'x {', input: x}}}",
        "tasks.qa.template.context: ",
    ),
}


@pytest.mark.parametrize(("section", "place"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_value_is_refused_with_its_place(tmp_path, section, place):
    message = refusal(tmp_path, MINIMAL + section)
    assert str(tmp_path / "run.yaml") in message
    assert place in message


@pytest.mark.parametrize(
    "override", ["paths.work=3", "paths.work=null", "serve={bundle: [a]}", "paths.cache=s3://bucket/run"]
)
def test_a_path_that_is_no_local_one_is_refused_with_its_place(tmp_path, override):
    assert override.partition("=")[0] in refusal(tmp_path, MINIMAL, override)


@pytest.mark.parametrize("part", ["context: '{query}', input: x", "context: x, input: '{answer}'"])
def test_a_template_field_that_its_part_never_gets_is_refused(tmp_path, part):
    assert "template" in refusal(tmp_path, MINIMAL + f"tasks: {{qa: {{template: {{{part}}}}}}}")


@pytest.mark.parametrize("name", ["a.b", "../up", "a/b", "''"])
def test_a_task_name_that_cannot_name_a_file_is_refused(tmp_path, name):
    assert "tasks" in refusal(tmp_path, MINIMAL + f"tasks: {{{name}: {{{OWN_TASK}}}}}")


def test_several_problems_are_counted_and_the_first_is_shown(tmp_path):
    message = refusal(tmp_path, MINIMAL + "mine: {group_size: 1, colour: red}")
    assert "mine.group_size: " in message
    assert message.endswith("; and 1 more")


def test_a_missing_file_is_refused_with_its_path(tmp_path):
    with pytest.raises(ConfigError, match=r"no-such\.yaml: no such file"):
        load_run(tmp_path / "no-such.yaml")


@pytest.mark.parametrize("text", ["mine: [1,\n  2", "a: b: c", "\tmine: 3", "&a [*b]", "mine: " + "[" * 5000])
def test_a_file_that_is_not_yaml_is_refused(tmp_path, text):
    assert "not a YAML file" in refusal(tmp_path, text)


def test_an_override_that_is_nested_too_deeply_is_refused(tmp_path):
    assert "the value is not valid YAML" in refusal(tmp_path, MINIMAL, "mine.seed=" + "[" * 5000)


def test_a_run_file_that_is_none_is_refused_by_its_size(tmp_path):
    assert "a run file has at most" in refusal(tmp_path, MINIMAL + "#" * 2**20)


def test_a_run_file_as_windows_saves_it_loads(tmp_path):
    (tmp_path / "run.yaml").write_bytes(MINIMAL.replace("\n", "\r\n").encode("utf-8-sig"))
    assert load_run(tmp_path / "run.yaml").encoder.model == "owner/name"


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"paths: \xff\xfe")
    with pytest.raises(ConfigError, match="not a YAML file"):
        load_run(tmp_path / "run.yaml")


@pytest.mark.parametrize(("text", "kind"), [("- 1", "list"), ("", "NoneType"), ("hello", "str")])
def test_yaml_that_is_no_mapping_is_refused(tmp_path, text, kind):
    assert f"holds {kind}" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    "override", ["mine.group_size", "=3", "mine..seed=3", "mine.=3", "mine.seed=[1", "paths.work.x=3"]
)
def test_a_bad_override_is_refused_and_named(tmp_path, override):
    assert f"--set {override!r}" in refusal(tmp_path, MINIMAL, override)


@pytest.mark.parametrize("override", ["mine.sed=3", "mine={sed: 3}", "mine.sed.x=3"])
def test_an_unknown_key_of_an_override_is_refused_with_the_override_and_the_nearest_key(tmp_path, override):
    message = refusal(tmp_path, MINIMAL, "mine.group_size=4", override)
    assert message == (
        f"--set {override}: mine.sed is not a setting; did you mean mine.seed? (docs/configuration.md has all)"
    )


def test_an_unknown_key_of_the_file_is_refused_with_the_file_whatever_is_overridden(tmp_path):
    message = refusal(tmp_path, MINIMAL + "mine: {sed: 3}", "mine.seed=3")
    assert message.startswith(f"--config {tmp_path / 'run.yaml'}: mine.sed is not a setting; did you mean mine.seed?")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tasks.qa.template.stopp=x", "did you mean tasks.qa.template.stop?"),
        ("index.search.nprobes=3", "did you mean index.search.nprobe?"),
        ("evaluate.retrievers=[{name: a, modl: b}, base]", "did you mean evaluate.retrievers.0.model?"),
        ("encoder={model: m, poolin: cls}", "did you mean encoder.pooling?"),
        ("serve.colour=red", "serve.colour is not a setting (docs/configuration.md has all)"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_of_its_own_section(tmp_path, override, words):
    assert words in refusal(tmp_path, MINIMAL, override)


def test_a_long_override_is_named_by_its_key(tmp_path):
    message = refusal(tmp_path, MINIMAL, f"serve={{colour: {'red' * 50}}}")
    assert message.startswith("--set serve=...: serve.colour is not a setting")


@pytest.mark.parametrize("override", ["mine.seed=many", "mine={seed: many}"])
def test_a_wrong_value_of_an_override_is_refused_with_the_override(tmp_path, override):
    assert refusal(tmp_path, MINIMAL, override).startswith(f"--set {override}: mine.seed: Input should be")


def test_values_that_do_not_fit_together_are_those_of_the_file_and_of_no_single_override(tmp_path):
    message = refusal(tmp_path, MINIMAL + "train: {steps: 3, batch_size: 9}", "train.steps=4")
    assert message.startswith(f"--config {tmp_path / 'run.yaml'}: train: batch_size 9 is not a multiple")


def written(key: str, value: object) -> str:
    """A run file with one key set; the kind of a retriever is that which has the key."""
    *parents, name = key.replace("*", "qa" if key.startswith("tasks") else "0").split(".")
    kind = {"kind": "endpoint", "name": "a", "url": "http://h/v1", "model": "m"}
    node: object = {name: value} if "retrievers" not in parents else {**kind, name: value}
    for parent in reversed(parents):
        node = [node, "base"] if parent == "0" else {parent: node}
    return yaml.safe_dump({**yaml.safe_load(MINIMAL), **node})


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items(), ids=RENAMED_KEYS)
def test_an_old_key_is_answered_with_the_new_one_which_is_a_setting(tmp_path, old, new):
    numbered = [key.replace("*", "qa" if key.startswith("tasks") else "0") for key in (old, new)]
    assert f"{numbered[0]} is now {numbered[1]} " in refusal(tmp_path, written(old, 1))
    key, known = locate_key([int(part) if part == "0" else part for part in numbered[1].split(".")])
    assert key == numbered[1]
    assert key.rpartition(".")[2] in known


@pytest.mark.parametrize(("key", "old", "new"), [(*given, new) for given, new in RENAMED_VALUES.items()])
def test_an_old_value_is_answered_with_the_new_one_which_is_taken(tmp_path, key, old, new):
    section = key.partition(".")[0]
    needed = {"train": ["train.steps=3"]}[section]
    assert refusal(tmp_path, MINIMAL, *needed, f"{key}={old}") == f"--set {key}={old}: {key}: {old} is now {new}"
    assert getattr(getattr(load(tmp_path, MINIMAL, *needed, f"{key}={new}"), section), key.partition(".")[2]) == new


def test_overrides_win_over_the_file_and_are_read_as_yaml(tmp_path):
    text = MINIMAL + "mine: {seed: 1, group_size: 4}"
    config = load(tmp_path, text, "mine.seed=7", "mine.window=[3, 9]", "train.steps=5", "llm.model=a=b", "mine.seed=8")
    assert (config.mine.seed, config.mine.group_size, config.mine.window) == (8, 4, (3, 9))
    assert (config.train.steps, config.llm.model) == (5, "a=b")


def test_a_builtin_task_is_overridden_field_by_field(tmp_path):
    task = load(tmp_path, MINIMAL + "tasks: {chat: {shots: 2}}", "tasks.chat.max_output_tokens=5").tasks["chat"]
    assert task == BUILTIN_TASKS["chat"].model_copy(update={"shots": 2, "max_output_tokens": 5})
    assert BUILTIN_TASKS["chat"].shots == 0


@pytest.mark.parametrize(
    ("written", "stop"), [("Q", ("Q",)), ("[Q, A]", ("Q", "A")), ("null", ()), ('"\\n"', ("\n",)), ("[]", ())]
)
def test_stop_texts_of_a_template_are_one_or_a_list_or_none(tmp_path, written, stop):
    text = MINIMAL + f"tasks: {{qa: {{template: {{context: x, input: x, stop: {written}}}}}}}"
    assert load(tmp_path, text).tasks["qa"].template.stop == stop


def test_a_task_takes_the_gain_of_a_likelihood_as_reward(tmp_path):
    assert load(tmp_path, MINIMAL, "tasks.lrlm.reward=gain").tasks["lrlm"].reward == "gain"


def test_label_without_any_rival_of_the_desired_output_is_refused(tmp_path):
    assert load(tmp_path, MINIMAL, "label.num_samples=0", "label.corpus_outputs=4").label.num_rivals == 4
    with pytest.raises(ConfigError, match="num_samples is 0, and so is corpus_outputs"):
        load(tmp_path, MINIMAL, "label.num_samples=0")


def test_a_user_adds_a_task_of_their_own(tmp_path):
    config = load(tmp_path, MINIMAL + f"tasks: {{mine: {{{OWN_TASK}}}}}")
    assert set(config.tasks) == {*BUILTIN_TASKS, "mine"}
    assert (config.tasks["mine"].instruction("query"), config.tasks["mine"].loss) == ("Q: ", "contrastive")


def test_reading_a_run_file_needs_no_torch():
    modules = ["config.run", "models.locate", "data.dataset", "models.fingerprint", "data.ledger", "index.bundle"]
    lines = "\n".join(f"import embedder.{name}\nassert 'torch' not in sys.modules, '{name}'" for name in modules)
    result = subprocess.run(
        [sys.executable, "-c", f"import sys\n{lines}"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr


def test_an_index_keeps_how_queries_fall_into_words(tmp_path):
    config = load(tmp_path, MINIMAL, "words.stop_words=german", "index.factory=Flat")
    assert config.build_settings.words == config.words
    assert config.build_settings.words.stop_words == "german"
    assert config.build_settings.factory == "Flat"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train: {steps: 10}\ntrain: {steps: 99}\n", "'train' stands there a second time"),
        ("train: {steps: 10, steps: 99}\n", "'steps' stands there a second time"),
        ("train: {steps: true}\n", "steps is true; it takes no yes or no"),
        ("train: {steps: 8, learning_rate: yes}\n", "learning_rate is true; it takes no yes or no"),
        ("evaluate: {llm_queries: {qa: true}}\n", "it takes no yes or no"),
        ("evaluate: {cutoffs: [0]}\n", "evaluate.cutoffs.0: "),
        ("evaluate: {depth: 5}\n", "depth is 5, but measures read the first 10 passages"),
        ("tasks: {qa: {reward_margin: 1.0e-9}}\n", "set 0, or at least 1e-6"),
        ("train: {steps: 0x" + "f" * 6000 + "}\n", "train.steps"),
        ("train: {steps: 8, seed: 18446744073709551616}\n", "train.seed"),
    ],
)
def test_what_python_would_take_for_something_else_is_refused(tmp_path, text, told):
    assert told in refusal(tmp_path, MINIMAL + text)


def test_value_that_grows_from_aliases_is_shown_by_its_beginning(tmp_path):
    lines = "".join(f"  - &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(6))
    assert len(refusal(tmp_path, f"{MINIMAL}train:\n  - &a0 [x]\n{lines}")) < 1000


def test_keys_that_a_merge_brings_may_stand_again(tmp_path):
    text = "encoder: &e {model: owner/name, pooling: mean}\npaths: {work: run}\n"
    text += "train: &t {steps: 8}\n"
    config = load(tmp_path, text.replace("&e {", "&e {<<: {pooling: cls, model: x}, "))
    assert (config.encoder.model, config.encoder.pooling) == ("owner/name", "mean")


def test_part_of_a_template_is_laid_over_the_built_in_one(tmp_path):
    template = load(tmp_path, MINIMAL, "tasks.qa.template.chat=true").tasks["qa"].template
    assert template == BUILTIN_TASKS["qa"].template.model_copy(update={"chat": True})


def test_day_of_a_chat_may_have_a_time(tmp_path):
    day = load(tmp_path, MINIMAL, "tasks.qa.template={chat: true, chat_date: 2026-02-03T10:00:00}").tasks["qa"].template
    assert day.chat_date == "2026-02-03"
