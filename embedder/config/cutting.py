"""A text behind its instruction, as the encoder reads it, and which part of it stays where both are too long.

Needs no torch: the service and a bundle's manifest make the same texts as training, mining and evaluating.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

QueryCut = Literal["end", "start", "last_turn_first"]
"""`end`: a query that is too long loses its end. `start`: it loses what comes first, and the instruction stays.
`last_turn_first`: its lines are read from the last one to the first, and then it loses its end."""


@dataclass(frozen=True)
class PromptedText:
    """A text and the instruction before it."""

    instruction: str
    text: str
    keeps_end: bool = False
    """Of a text that is too long its end stays, in place of its beginning."""

    def __str__(self) -> str:
        return self.instruction + self.text

    def __len__(self) -> int:
        return len(self.instruction) + len(self.text)


def prompted_text(instruction: str, text: str, cut: QueryCut = "end") -> PromptedText:
    """The one way in which an instruction comes before a text.

    The order of turns changes also where nothing is too long, so that the encoder sees one form of conversation.
    """
    ordered = last_turn_first(text) if cut == "last_turn_first" else text
    return PromptedText(instruction, ordered, keeps_end=cut == "start")


def last_turn_first(conversation: str) -> str:
    """The lines of a conversation, one a turn, from the last one to the first."""
    # All lines turn round and not only the last one, because a last turn may have several: they stay together.
    turns = conversation.rstrip().splitlines()
    return "\n".join(turns[::-1]) if len(turns) > 1 else conversation
