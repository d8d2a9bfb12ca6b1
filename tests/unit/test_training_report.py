"""The training report and the model card: curves, both ends of a loss, what was exported; every text escaped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from embedder.config.run import RunConfig
from embedder.config.train import TrainConfig
from embedder.training.job import StepMetrics
from embedder.training.model_card import model_card
from embedder.training.training_report import MOST_POINTS, report_lines, summarise, thinned, write_report

PNG = b"\x89PNG"


def steps(count=20):
    made = []
    for number in range(count):
        task = ("qa", "tool")[number % 2]
        loss = 2.0 - number / count
        made.append(StepMetrics(number, {task: loss}, loss, 1e-5, {task: 1.1}, 0.5, 1 + number // 10))
    return made


def history(*means):
    return [{"steps": 5 * i, "tasks": {"qa": mean, "tool": mean}, "mean": mean} for i, mean in enumerate(means)]


GUARD = {
    "share": 0.5,
    "measured": [
        {"share": 0.0, "tasks": {"qa": 0.5, "tool": 0.5}, "mean": 0.5},
        {"share": 0.5, "tasks": {"qa": 0.66, "tool": 0.6}, "mean": 0.63},
        {"share": 1.0, "tasks": {"qa": 0.95, "tool": 0.45}, "mean": 0.7},
    ],
}


def numbers(means=(0.5, 0.7, 0.6), made=None, guard=None):
    validation = {"share": 0.1} if means else None
    config = TrainConfig(steps=20, batch_size=4, validation=validation, guard=None if guard is None else {})
    outcome = {"steps": 20, "validation": None, "guard": guard}
    if means:
        outcome["validation"] = {"history": history(*means), "best": max(range(len(means)), key=means.__getitem__)}
    made = steps() if made is None else made
    return summarise(made, {"qa": 30, "tool": 10, "<b>&": 3}, {"qa: all rewards are equal": 4}, outcome, config)


def test_summarise_training_takes_its_numbers_from_the_steps():
    found = numbers()
    assert (found["steps"], found["queries"], found["seconds"], found["queries_per_s"]) == (20, 80, 10.0, 8.0)
    assert found["workers"] == [1, 2]
    qa = found["tasks"]["qa"]
    assert (qa["rows"], qa["steps"], qa["pace_last"]) == (30, 10, 1.1)
    assert (qa["loss_first"], qa["loss_last"]) == (pytest.approx(1.95), pytest.approx(1.15))
    assert qa["losses"][:2] == [(1, 2.0), (3, 1.9)]
    assert found["tasks"]["<b>&"]["loss_last"] is None
    assert json.loads(json.dumps(found))["validation"]["best"] == 1


def test_thinned_averages_long_curves():
    points = [(step, float(step % 2)) for step in range(10 * MOST_POINTS)]
    found = thinned(points)
    assert len(found) == MOST_POINTS
    assert found[0] == (4.5, 0.5)
    assert thinned([]) == [] and thinned([(1, 2.0)]) == [(1, 2.0)]


def test_training_report_is_three_files_and_escapes_what_it_shows(tmp_path):
    path = write_report(numbers(), tmp_path / "reports", "<run>")
    text = path.read_text(encoding="utf-8")
    assert "<b>&" not in text and "&lt;b&gt;&amp;" in text and "Training of &lt;run&gt;" in text
    assert "after 5 steps, which ranks held-out queries best" in text
    assert "0.7000" in text and "all rewards are equal" in text
    assert (tmp_path / "reports" / "training.png").read_bytes().startswith(PNG)
    assert json.loads((tmp_path / "reports" / "training.json").read_text(encoding="utf-8"))["steps"] == 20


@pytest.mark.parametrize(("means", "said"), [((), "No groups were kept apart"), ((0.9, 0.8), "No step did better")])
def test_training_page_says_what_was_exported(tmp_path, means, said):
    assert said in write_report(numbers(means), tmp_path, "run").read_text(encoding="utf-8")


def test_training_report_says_what_the_guard_chose(tmp_path):
    found = numbers(guard=GUARD)
    path = write_report(found, tmp_path, "run")
    text = path.read_text(encoding="utf-8")
    assert "Exported: the weights at 50.0% of the way" in text and "50.0%, exported" in text
    assert "0.6600" in text and "Exported: the encoder after" not in text
    assert json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))["guard"] == GUARD
    (line,) = [line for line in report_lines(found) if line.startswith("guard: ")]
    assert "at 50% of the way" in line and line.endswith("0% 0.5000, 50% 0.6300, 100% 0.7000")
    assert not any("(exported)" in line for line in report_lines(found))
    assert "Guard" not in write_report(numbers(), tmp_path, "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("count", [1, 2])
def test_draw_training_of_a_step_or_two(tmp_path, count):
    write_report(numbers((), steps(count)), tmp_path, "run")
    assert (tmp_path / "training.png").stat().st_size > 1000


@pytest.mark.parametrize("means", [(), (0.5, 0.7)])
def test_model_card_names_prompts_data_settings_and_metrics_and_leaves_the_licence_open(means):
    raw = {
        "paths": {"work": "runs/mine"},
        "encoder": {"model": "owner/base", "pooling": "cls"},
        "llm": {"model": "owner/llm"},
        "prepare": {"sources": [{"task": "qa", "dataset": "handbook", "path": "data"}]},
        "train": {"steps": 20},
        "tasks": {"mine": {"query_instruction": "a | b: ", "passage_instruction": ""}},
    }
    found = numbers(means)
    found["tasks"].pop("<b>&")
    card = model_card(RunConfig.model_validate(raw), found)
    head = yaml.safe_load(card.split("---")[1])
    assert head["base_model"] == "owner/base" and head["license"] == "other"
    assert card.count("TODO") == 4
    for part in ("# mine", "`a \\| b: `", "handbook (qa)", "the LLM `owner/llm`", "batch_size: 4", "qa_query"):
        assert part in card
    assert ("| mean | 0.5000 | 0.7000 |" in card) == bool(means)
    assert card == model_card(RunConfig.model_validate(raw), found)


def test_model_card_has_the_measures_of_what_the_guard_chose():
    raw = {
        "paths": {"work": "runs/mine"},
        "encoder": {"model": "owner/base", "pooling": "cls"},
        "train": {"steps": 20, "validation": {"share": 0.1}, "guard": {}},
    }
    found = numbers(guard=GUARD)
    found["tasks"].pop("<b>&")
    card = model_card(RunConfig.model_validate(raw), found)
    assert "these weights are at 50.0% of the way" in card
    assert "| qa | 0.5000 | 0.6600 |" in card and "| mean | 0.5000 | 0.6300 |" in card


def test_model_card_is_not_part_of_the_model_fingerprint(tiny_encoder_folder, tmp_path):
    from embedder.models.fingerprint import model_fingerprint

    before = model_fingerprint(tiny_encoder_folder)
    note = Path(tiny_encoder_folder) / "README.md"
    note.write_text("# card", encoding="utf-8")
    assert model_fingerprint(tiny_encoder_folder) == before
    note.unlink()
