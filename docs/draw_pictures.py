"""The pictures of the manual: `python docs/draw_pictures.py` writes docs/pictures/*.svg.

Rewards, targets and instructions in them are computed by the project's own code, and words stay words in the files, so
that a reader can search them and a test can compare them with what this script draws.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from embedder.config.tasks import BUILTIN_TASKS
from embedder.labelling.rewards import desired_rank, group_rewards
from embedder.reporting.plots import LIGHT

FOLDER = Path(__file__).with_name("pictures")
BLUE, PURPLE, GREEN, YELLOW = LIGHT.series[:4]
PALE = "#eef1f4"
# Words as words; the fonts of most systems, of which Verdana is as wide as the one that measured the boxes.
SVG = {"svg.fonttype": "none", "svg.hashsalt": "llm-embedder", "font.family": ["DejaVu Sans"]}
FONTS = "'DejaVu Sans', Verdana, Arial, sans-serif"

OUTPUTS = ("“set”", "“list”", "“a tuple”", "“dict”", "“frozenset”")
"""Outputs of the LLM for one query; the first is the desired one."""
ALONE = (-2.4, -1.1, -1.6, -1.9, -2.9)
"""Their log-likelihoods without a passage, made up for the picture."""
PASSAGES = {
    "A set holds each item once.": (-0.5, -1.4, -1.9, -2.2, -1.2),
    "A list holds items in order.": (-2.1, -0.6, -1.7, -2.3, -3.1),
    "The fox sleeps.": (-2.5, -1.2, -1.6, -2.0, -3.0),
}
"""The same with each candidate passage in the prompt."""
REWARD_TEMPERATURE = 1.5


def box(axis: Axes, place: tuple[float, float, float, float], text: str, color: str = PALE) -> None:
    """A rounded box (left, bottom, width, height) with its text in the middle; white text on the colours of data."""
    left, bottom, width, height = place
    axis.add_patch(
        FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.08", fc=color, ec="none")
    )
    shown = LIGHT.text if color in (PALE, YELLOW) else "#ffffff"
    say(axis, left + width / 2, bottom + height / 2, text, color=shown, ha="center")


def say(axis: Axes, x: float, y: float, text: str, size: float = 9, **style: str) -> None:
    """Words at a place, in the middle of its height."""
    axis.text(x, y, text, fontsize=size, parse_math=False, **{"va": "center", "color": LIGHT.text, **style})


def note(axis: Axes, y: float, text: str) -> None:
    """A line below a picture."""
    say(axis, 0.1, y, text, 8.5)


def arrow(axis: Axes, begin: tuple[float, float], end: tuple[float, float], color: str = LIGHT.lines) -> None:
    """An arrow from one point to another."""
    axis.annotate("", end, begin, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.5})


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty picture whose units are inches."""
    figure = Figure(figsize=(width, height))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.set_axis_off()
    return figure, axis


def overview() -> Figure:
    """From texts to a service."""
    figure, axis = canvas(9.2, 1.8)
    steps = (
        ("your documents\nand questions", PALE),
        ("find candidates", BLUE),
        ("your LLM\nrewards them", PURPLE),
        ("train the\nembedder", BLUE),
        ("build\nthe index", BLUE),
        ("serve it", GREEN),
    )
    under = ("prepare", "mine", "label", "train", "index", "serve")
    for place, ((text, color), command) in enumerate(zip(steps, under, strict=True)):
        left = 0.1 + place * 1.52
        box(axis, (left, 0.85, 1.3, 0.8), text, color)
        say(axis, left + 0.65, 0.6, command, ha="center", family="monospace")
        if place:
            arrow(axis, (left - 0.22, 1.25), (left, 1.25))
    arrow(axis, (8.35, 0.4), (8.35, 0.12))
    arrow(axis, (8.35, 0.12), (0.75, 0.12))
    arrow(axis, (0.75, 0.12), (0.75, 0.45))
    say(axis, 4.6, 0.27, "new documents: write them to the service, or repeat prepare and index", 8, ha="center")
    return figure


def rewards() -> Figure:
    """The rank of the desired output without and with each candidate."""
    figure, axis = canvas(9.2, 3.5)
    say(axis, 0.1, 3.3, "Query: which type keeps every item only once?   Desired output: “set”", 10, weight="bold")
    earned = group_rewards("rank", ALONE, list(PASSAGES.values()))
    columns = [("no passage", ALONE, None), *zip(PASSAGES, PASSAGES.values(), earned, strict=True)]
    for place, (title, scores, reward) in enumerate(columns):
        left = 0.1 + 2.3 * place
        say(axis, left, 2.95, "passage in the prompt:" if place else "the LLM alone:", 8)
        say(axis, left, 2.74, title, weight="bold")
        ranked = sorted(range(len(OUTPUTS)), key=lambda each: -scores[each])
        for row, output in enumerate(ranked):
            color = PURPLE if output == 0 else PALE
            box(axis, (left, 2.28 - 0.36 * row, 1.95, 0.3), f"{row + 1}.  {OUTPUTS[output]}", color)
        rank = desired_rank(scores)
        told = f"rank {rank:.0f}" if reward is None else f"rank {rank:.0f}, so the reward is {reward:+.0f}"
        say(axis, left, 0.55, told.replace("+0", "0"), 9, weight="bold")
    note(axis, 0.2, "Likeliest output first. A passage is worth the ranks by which it lifts the desired output.")
    return figure


def graded() -> Figure:
    """Rewards become targets, and targets pull."""
    earned = group_rewards("rank", ALONE, list(PASSAGES.values()))
    weights = [math.exp(reward / REWARD_TEMPERATURE) for reward in earned]
    targets = [weight / sum(weights) for weight in weights]
    figure, axis = canvas(9.2, 3.0)
    heads = {0.1: "candidate", 2.75: "reward", 3.75: "target: its share of the pull", 6.5: "pushed away"}
    for x, title in heads.items():
        say(axis, x, 2.75, title, weight="bold")
    order = sorted(range(len(earned)), key=lambda each: -earned[each])
    for row, one in enumerate(order):
        y = 2.25 - 0.5 * row
        say(axis, 0.1, y, list(PASSAGES)[one])
        say(axis, 2.75, y, f"{earned[one]:+.0f}".replace("+0", "0"))
        axis.barh(y, 1.8 * targets[one], 0.26, left=3.75, color=PURPLE)
        say(axis, 3.85 + 1.8 * targets[one], y, f"{targets[one]:.0%}")
        lower = sum(reward < earned[one] for reward in earned)
        own = f"{lower} of lower reward, and " if lower else ""
        say(axis, 6.5, y, f"{own}those of other queries", 8.5)
    axis.plot([0.1, 9.1], [0.75, 0.75], color=LIGHT.lines, lw=0.8)
    note(axis, 0.5, "Every candidate pulls the query’s vector by its share. A larger reward gives a larger share.")
    note(axis, 0.25, "Candidates of equal reward never push each other away: the LLM saw no difference.")
    return figure


def sides() -> Figure:
    """One encoder, an instruction for each task and side."""
    task = BUILTIN_TASKS["tool"]
    figure, axis = canvas(9.2, 2.8)
    rows = (
        ("query", task.query_instruction, "“What is the weather in Graz?”", 1.75),
        ("passage", task.passage_instruction, "“get_forecast: returns the weather of a town”", 0.55),
    )
    for side, instruction, text, y in rows:
        say(axis, 0.1, y + 0.72, f"task tool, side {side}", weight="bold")
        box(axis, (0.1, y + 0.28, 5.2, 0.3), instruction.strip(), YELLOW)
        box(axis, (0.1, y - 0.06, 5.2, 0.3), text)
        arrow(axis, (5.35, y + 0.26), (5.9, 1.4 + (0.15 if side == "query" else -0.15)))
        arrow(axis, (7.15, 1.4 + (0.15 if side == "query" else -0.15)), (7.65, y + 0.26))
        box(axis, (7.7, y + 0.06, 1.35, 0.4), f"{side} vector", BLUE)
    box(axis, (5.95, 1.0, 1.15, 0.8), "one encoder\nfor all tasks", GREEN)
    arrow(axis, (8.38, 1.75), (8.38, 1.06))
    arrow(axis, (8.38, 1.06), (8.38, 1.75))
    say(axis, 8.5, 1.4, "cosine", 8.5)
    note(axis, 0.2, "Yellow: the instruction. It tells the encoder what to look for, and is part of what is trained.")
    return figure


def versions() -> Figure:
    """An alias moves from one bundle to the next, and what was written follows."""
    figure, axis = canvas(9.2, 2.9)
    for left, name, built in ((2.5, "version 1", "built in May"), (6.2, "version 2", "built in June")):
        shape = "round,pad=0,rounding_size=0.1"
        axis.add_patch(FancyBboxPatch((left, 0.55), 2.7, 1.55, boxstyle=shape, fc="#ffffff", ec=LIGHT.lines))
        say(axis, left + 0.15, 1.9, f"{name}, {built}", weight="bold")
        box(axis, (left + 0.15, 1.3, 1.15, 0.38), "model", GREEN)
        box(axis, (left + 1.4, 1.3, 1.15, 0.38), "vectors of it", BLUE)
        box(axis, (left + 0.15, 0.75, 2.4, 0.38), "documents written since", YELLOW)
    box(axis, (0.1, 1.12, 1.3, 0.5), "alias live", PURPLE)
    arrow(axis, (1.45, 1.37), (2.45, 1.37))
    axis.plot([0.75, 0.75], [1.66, 2.4], color=PURPLE, lw=1.5, ls="--")
    axis.plot([0.75, 7.5], [2.4, 2.4], color=PURPLE, lw=1.5, ls="--")
    arrow(axis, (7.5, 2.42), (7.5, 2.12), PURPLE)
    say(axis, 4.2, 2.6, "the alias moves as a whole: each request is answered by one version", 8.5, ha="center")
    arrow(axis, (5.08, 0.94), (6.32, 0.94), YELLOW)
    say(axis, 5.7, 0.72, "follow", 8.5, ha="center")
    note(axis, 0.2, "Model and vectors are never mixed. The old version stays, so the way back is one move.")
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    each.__name__: each for each in (overview, rewards, graded, sides, versions)
}


def svg(draw: Callable[[], Figure]) -> str:
    """A picture as SVG, on white, without a date."""
    with matplotlib.rc_context(SVG):
        figure = draw()
        figure.set_facecolor("#ffffff")
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue().replace("'DejaVu Sans'", FONTS).replace('"DejaVu Sans"', f'"{FONTS}"')
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def main() -> None:
    """Write all pictures."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(svg(draw), encoding="utf-8")


if __name__ == "__main__":
    main()
