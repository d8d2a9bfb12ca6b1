"""The six built-in tasks as data: the instruction of each side, the prompt of the LLM, and the training recipe.

A run file may override any field of a built-in task, or add a task, under `tasks:`.
Instruction strings: FlagEmbedding `research/llm_embedder` (the paper's appendix); templates A.1 to A.5:
the paper's appendix A. Needs no torch, so that a run file is checked on a login node.
"""

from __future__ import annotations

from datetime import date
from string import Formatter
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from embedder.config.cutting import PromptedText, QueryCut, prompted_text
from embedder.config.paths import Section

Side = Literal["query", "passage"]

OWN_REWARDS = frozenset({"own_answers", "judgement"})
"""Kinds of reward that need no desired output: the LLM answers, or judges, by itself."""
RANK_REWARDS = frozenset({"rank", "rank_then_gain"})
"""Kinds of reward for which the desired output is ranked among others."""
VERDICTS = {"yes": 1.0, "partly": 0.5, "no": 0.0}
"""The LLM's answers to whether a passage helps, and what each is worth."""
PROMPT_FORMAT = 2
"""How prompts are made from templates and data; part of what labels and replies depend on. 1: tokenised as one string
without regard to what the data says, outputs apart from it."""


class PromptTemplate(Section):
    """How a query, with or without a candidate, is put to the LLM.

    The prefix is shots, `context` and `input` with a candidate, and shots and `input` without. The output follows it.
    """

    context: str
    """Text around a candidate; `{passage}` stands for it."""
    input: str
    """Text around the query; `{query}` stands for it."""
    output: str = " {answer}"
    """Text around an output; `{answer}` stands for it."""
    separator: str = "\n\n"
    """Text after each shot."""
    stop: tuple[str, ...] = ("\n",)
    """A sampled output ends before the first of these texts, because a small LLM would write the next question after
    its answer. null or an empty list keeps all `max_output_tokens`."""
    chat: bool = False
    """Wrap context and input as a single user message of the LLM's own chat template. The output is the assistant's
    message, so it begins without the white space of `output`."""
    chat_arguments: dict[str, bool | int | float | str] = Field(default={})
    """What the chat template is given beside the message, such as `enable_thinking: false`. A name that it does not
    read is refused."""
    chat_date: str = "2026-01-01"
    """The day that a chat template takes for today: with the true one, labels of two days would differ."""

    @field_validator("chat_arguments")
    @classmethod
    def by_name(cls, value: dict[str, bool | int | float | str]) -> dict[str, bool | int | float | str]:
        """In one order: labels are told apart by the hash of the template."""
        return dict(sorted(value.items()))

    @field_validator("stop", mode="before")
    @classmethod
    def one_or_many(cls, value: object) -> object:
        """Turn a single text into a list of one, and null into an empty list."""
        return () if value is None else (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def no_empty_stop(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse the empty text, before which every output would end."""
        if "" in value:
            raise ValueError("stop holds an empty text, which would leave every output empty; use null for no stop")
        return value

    @field_validator("chat_date", mode="before")
    @classmethod
    def a_day(cls, value: object) -> object:
        """Take the date that YAML reads, and refuse a text that is none."""
        # A time of day is a date to Python too.
        text = value.strftime("%Y-%m-%d") if isinstance(value, date) else str(value)
        return date.fromisoformat(text).isoformat()

    @model_validator(mode="after")
    def arguments_need_chat(self) -> PromptTemplate:
        """Refuse arguments that nothing would read."""
        if self.chat_arguments and not self.chat:
            raise ValueError("chat_arguments are given to a chat template; set chat to true, or leave them out")
        return self

    @property
    def continues(self) -> bool:
        """True if the output continues the query's text, so that white space between the two belongs to the text."""
        return self.output == "{answer}"

    @field_validator("context", "input", "output")
    @classmethod
    def only_its_own_field(cls, value: str, info: ValidationInfo) -> str:
        """Refuse other fields, and those that str.format could use to reach into objects, such as {query.__class__}."""
        allowed = {"context": "passage", "input": "query", "output": "answer"}[str(info.field_name)]
        for _, name, spec, conversion in Formatter().parse(value):
            if name is not None and (name != allowed or spec or conversion):
                raise ValueError(f"field {{{name}}} in template {value!r}; allowed is {{{allowed}}}, written plainly")
        return value


class JudgementTemplate(Section):
    """How the LLM is asked whether a passage helps; `yes`, `partly` or `no` follows."""

    context: str = "Passage:\n{passage}\n\n"
    """Text around a candidate; `{passage}` stands for it."""
    input: str = "Question: {query}\nDoes the passage help to answer the question? Answer yes, partly or no.\nAnswer:"
    """Text around the query; `{query}` stands for it."""

    @model_validator(mode="after")
    def fields_fit(self) -> JudgementTemplate:
        """Refuse what no prompt may hold."""
        PromptTemplate(context=self.context, input=self.input)
        return self


class WorkedAnswer(Section):
    """A query and its answer, which the LLM reads before it answers itself."""

    query: str = Field(min_length=1)
    """The query."""
    answer: str = Field(min_length=1)
    """What the LLM is to answer to it."""


class TaskSpec(Section):
    """What sets a task apart: its instructions, the prompt of its LLM, and its training."""

    query_instruction: str
    """Text before every query when it is encoded."""
    passage_instruction: str
    """Text before every passage when it is encoded."""
    query_cut: QueryCut = "end"
    """What a query of more than `encoder.max_tokens` loses; a passage loses its end. `end`: its end. `start`: its
    beginning, but not the instruction. `last_turn_first`: its lines are turned round, shorter queries' too, so that the
    last turn stands first, and then it loses its end (docs/data.md)."""
    reward: Literal["rank", "likelihood", "gain", "rank_then_gain", "own_answers", "judgement", "none"] = "none"
    """Reward of a candidate. `rank`: by how many ranks the candidate lifts the desired output among its rivals, as in
    the paper. `likelihood`: log-likelihood of the desired output. `gain`: that minus the same without the candidate, in
    whole margins (`reward_margin`). `rank_then_gain`: the rank; in a group where it is the same for all candidates,
    the gain, of which the best counts one rank above the worst. `own_answers`: for queries without a desired output;
    as the gain, but on average over answers that the LLM itself writes with all candidates before it. `judgement`: for
    the same queries; whether the LLM says that the candidate helps (`judgement_template`), as the expected value of
    yes (1), partly (0.5) and no (0). `none`: the task learns from known positives, without an LLM. The built-in tasks
    keep `rank`: better in `icl` and equal elsewhere (benchmarks/STUDY.md)."""
    reward_margin: float = Field(default=0.1, ge=0)
    """Margin of the gain (nats): gains nearer to the group's best than the margin equal it, the others count as the
    best less whole margins. 0: gains as they are; else at least 1e-6. The report's share of flat groups by gain uses it
    too."""
    reward_sum: Literal["mean", "sum"] = "mean"
    """Log-likelihood of an output: `mean` over its tokens or their `sum`. A mean prefers long outputs, whose last
    tokens are easily guessed; a sum prefers short ones."""
    template: PromptTemplate | None = None
    """Prompt of the LLM; needed unless `reward` is `none`."""
    judgement_template: JudgementTemplate = JudgementTemplate()
    """Prompt for the reward `judgement`. The chat settings are those of `template`. Worked examples do not stand before
    it."""
    shots: int = Field(default=0, ge=0)
    """Worked examples (query and answer, seeded choice from the training rows) before each prompt. Without them a small
    LLM answers with an empty line, and its samples are worthless."""
    worked_examples: list[WorkedAnswer] = Field(default=[])
    """Worked examples of your own, which are chosen from in datasets whose training rows have no answers."""
    max_output_tokens: int = Field(default=16, ge=1)
    """Tokens of an output that are sampled and scored. Labelling costs about in proportion to them."""
    loss: Literal["graded", "kl", "margin_mse", "contrastive", "reference"] = "contrastive"
    """`graded`: equation 4 of the paper. `kl`: divergence of scores from rewards within the group. `margin_mse`:
    differences of scores against those of rewards. `contrastive`: known positives alone. `reference`: the distillation
    of the paper's released code, with its quirks. The built-in tasks with a reward take `graded`, also where the paper
    takes `kl`: with `kl` nDCG@10 of `chat` fell from 0.86 to 0.59 (benchmarks/STUDY.md)."""
    reward_temperature: float | None = Field(default=None, gt=0)
    """Temperature of the softmax over rewards (alpha). null: the median, over the task's groups whose rewards differ,
    of the standard deviation of the rewards within the group; so one rule serves every kind of reward. It is computed
    when a training begins, and stands in its report and in the model card. The paper has 0.1 for `chat` and `lrlm`."""
    skip_flat: bool = True
    """Leave out groups whose rewards are all equal. They prefer no candidate, and with rank rewards of a small LLM they
    are 14 % to 50 % of the groups. The paper keeps them."""
    false_negatives: Literal["keep", "relabel", "drop"] = "keep"
    """What the loss `contrastive` does with candidates that nobody marked and that the LLM rewards as much as the best
    known positive (docs/labelling.md): `keep` them as negatives, `relabel` them as positives, or `drop` them. Other
    losses learn from the rewards themselves. What is too near a positive is left out by `mine.positive_share`
    before."""
    in_batch_negatives: bool = True
    """Candidates of other queries of the batch are negatives in the loss. `kl` and `margin_mse` never use them."""
    queries_are_examples: bool = False
    """Queries may stand in the corpus as worked examples, with their answer. A query then never gets its own one as a
    candidate; it is known by its text (docs/data.md). An equal id alone says nothing. In training an example of another
    query's group that ends with the query's own answer is no negative of it."""

    @field_validator("reward", mode="before")
    @classmethod
    def renamed_reward(cls, value: object) -> object:
        """Refuse the earlier name of the gain."""
        if value == "lift":
            raise ValueError("'lift' is called 'gain' now; with reward_margin: 0 it is the same")
        return value

    @field_validator("reward_margin")
    @classmethod
    def margin_that_divides(cls, value: float) -> float:
        """Refuse a margin of which a gain would be too many."""
        if 0 < value < 1e-6:
            raise ValueError(f"reward_margin is {value:g}; set 0, or at least 1e-6")
        return value

    @property
    def needs_answers(self) -> bool:
        """True if a query without a desired output cannot be rewarded."""
        return self.reward not in {*OWN_REWARDS, "none"}

    @property
    def reward_template(self) -> PromptTemplate | None:
        """The prompt that the LLM is given for the reward."""
        if self.reward != "judgement" or self.template is None:
            return self.template
        chat = {name: getattr(self.template, name) for name in ("chat", "chat_arguments", "chat_date")}
        asked = self.judgement_template
        return PromptTemplate(context=asked.context, input=asked.input, **chat)

    @property
    def has_rivals(self) -> bool:
        """True if the desired output is ranked among other outputs."""
        return self.reward in RANK_REWARDS

    @property
    def reward_rule(self) -> str:
        """The kind of reward with the settings that change it, as stored beside labels."""
        margin = f" margin {self.reward_margin:g}" if self.reward in {"gain", "rank_then_gain", "own_answers"} else ""
        sums = self.reward_sum == "sum" and self.reward not in {"none", "judgement"}
        return self.reward + margin + (" sum" if sums else "")

    @property
    def alpha(self) -> float:
        """The reward temperature as a number.

        Raises:
            ValueError: it is null, and was not computed from the rewards yet.
        """
        if self.reward_temperature is None:
            raise ValueError("the reward temperature is null; compute it from the rewards first")
        return self.reward_temperature

    def instruction(self, side: Side) -> str:
        """The instruction of one side."""
        return self.query_instruction if side == "query" else self.passage_instruction

    def prompted(self, side: Side, text: str) -> PromptedText:
        """A text as the encoder reads it."""
        return prompted_text(self.instruction(side), text, self.query_cut if side == "query" else "end")

    def without_instructions(self) -> TaskSpec:
        """The same task for an encoder that knows no instructions."""
        return self.model_copy(update={"query_instruction": "", "passage_instruction": ""})


KNOWLEDGE = PromptTemplate(context="Knowledge:\n{passage}\n\n", input="Q: {query} A:")
"""Template A.1 of the paper, the reward prompt of the knowledge tasks."""

MULTIPLE_CHOICE = PromptTemplate(context="Knowledge:\n{passage}\n\n", input="{query}\nAnswer:")
"""Template A.2 of the paper, for MMLU; {query} holds the heading, the question and its options A. to D."""

DIALOGUE = PromptTemplate(context="{passage}\n", input="Speaker 1: {query}\nSpeaker 2:")
"""Template A.4 of the paper, for MSC: the retrieved turn, then the current one."""

EXAMPLE = PromptTemplate(context="{passage}\n\n", input="{query}")
"""Template A.5 of the paper, for in-context learning: worked examples, then the input."""

LONG_TEXT = PromptTemplate(context="{passage}\n", input="{query}", output="{answer}", stop=())
"""Long-range language modelling: a retrieved chunk with its continuation, the recent text, then the next chunk."""

BUILTIN_TASKS: dict[str, TaskSpec] = {
    "qa": TaskSpec(
        query_instruction="Represent this query for retrieving relevant documents: ",
        passage_instruction="Represent this document for retrieval: ",
        reward="rank",
        template=KNOWLEDGE,
        shots=3,
        loss="graded",
    ),
    "convsearch": TaskSpec(
        query_instruction="Encode this query and context for searching relevant passages: ",
        passage_instruction="Encode this passage for retrieval: ",
        query_cut="last_turn_first",
    ),
    "chat": TaskSpec(
        query_instruction="Embed this dialogue to find useful historical dialogues: ",
        passage_instruction="Embed this historical dialogue for retrieval: ",
        query_cut="start",
        reward="rank",
        template=DIALOGUE,
        max_output_tokens=32,
        loss="graded",
    ),
    "lrlm": TaskSpec(
        query_instruction="Embed this text chunk for finding useful historical chunks: ",
        passage_instruction="Embed this historical text chunk for retrieval: ",
        query_cut="start",
        reward="rank",
        template=LONG_TEXT,
        max_output_tokens=192,
        loss="graded",
    ),
    "icl": TaskSpec(
        query_instruction="Convert this example into vector to look for useful examples: ",
        passage_instruction="Convert this example into vector for retrieval: ",
        reward="rank",
        template=EXAMPLE,
        shots=3,
        max_output_tokens=8,
        loss="graded",
        queries_are_examples=True,
    ),
    "tool": TaskSpec(
        query_instruction="Transform this user request for fetching helpful tool descriptions: ",
        passage_instruction="Transform this tool description for retrieval: ",
    ),
}
