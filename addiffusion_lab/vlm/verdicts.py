"""The judge's question, its votes, and what they show: verdicts of pairs, and over all the win rate and the biases."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from addiffusion_env.evaluation.statistics import Interval, score_interval
from addiffusion_lab.vlm.client import Part

Outcome: TypeAlias = Literal["a", "b", "tie", "unparsed", "unasked"]

SCORES = {"a": 1.0, "tie": 0.5, "b": 0.0}
_SHOWN: dict[str, tuple[Outcome, Outcome]] = {
    "first": ("a", "b"),
    "second": ("b", "a"),
    "tie": ("tie", "tie"),
    "unparsed": ("unparsed", "unparsed"),
}


@dataclass(frozen=True)
class PairVerdict:
    """The verdict on one pair of images.

    Attributes:
        prompt_id: id of their prompt.
        outcome: ``a`` or ``b`` when both orders agree on it; ``tie`` when both vote for it, when they disagree, or when
            the images are identical; ``unparsed`` when a reply had no verdict; ``unasked`` when the budget ran out.
        votes: votes of the order a, b and of the order b, a; empty without questions.
        texts: the replies.
    """

    prompt_id: str
    outcome: Outcome
    votes: tuple[Vote, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def disagrees(self) -> bool:
        """Whether both orders gave verdicts, and different ones."""
        return len(self.votes) == 2 and _outcome(*self.votes)[1]

    @property
    def flips(self) -> bool:
        """Whether both orders chose the same position: two opposite verdicts on one pair."""
        return self.votes in (("first", "first"), ("second", "second"))


def verdict_of(prompt_id: str, votes: tuple[Vote, Vote], texts: tuple[str, str]) -> PairVerdict:
    """The verdict of two votes: of the order a, b and of the order b, a."""
    return PairVerdict(prompt_id, _outcome(*votes)[0], votes, texts)


def _outcome(forth: Vote, back: Vote) -> tuple[Outcome, bool]:
    """Outcome, and whether the orders disagree."""
    one, other = _SHOWN[forth][0], _SHOWN[back][1]
    if "unparsed" in (one, other):
        return "unparsed", False
    return (one, False) if one == other else ("tie", True)


@dataclass(frozen=True)
class PositionBias:
    """Position bias of a judge. Every pair is shown in both orders, so without bias half of the choices are first.

    Attributes:
        first: replies that chose the image shown first.
        second: replies that chose the image shown second.
    """

    first: int
    second: int

    @property
    def share(self) -> float:
        """Share of choices for the first position; .5 without bias, NaN without choices."""
        total = self.first + self.second
        return self.first / total if total else math.nan

    @property
    def z(self) -> float:
        """z-score of the share against .5 (normal approximation); above 2 in absolute value the judge is biased."""
        total = self.first + self.second
        return (self.first - self.second) / math.sqrt(total) if total else 0.0


@dataclass(frozen=True)
class JudgeReport:
    """Results of a judge on all pairs.

    Attributes:
        judge: service and model, as requested.
        served: the models that answered, as reported by the service; there should be only one.
        template: digest of the wording.
        verdicts: verdicts in the order of the pairs.
        win_rate: of ``a``, ties counting half: mean over prompts, Tango's score interval; ``None`` without verdicts.
        position: position bias of all replies.
        asked: number of replies that were paid for in this run.
        cached: number of replies from the cache.
        retries: number of attempts that were repeated.
        cost: cost of this run in US dollars, uncertain attempts at their maximum.
        estimate: maximum cost in US dollars, as estimated before the run.
    """

    judge: str
    served: tuple[str, ...]
    template: str
    verdicts: tuple[PairVerdict, ...]
    win_rate: Interval | None
    position: PositionBias
    asked: int
    cached: int
    retries: int
    cost: float
    estimate: float

    def count(self, outcome: Outcome) -> int:
        """Pairs with that outcome."""
        return sum(verdict.outcome == outcome for verdict in self.verdicts)

    @property
    def complete(self) -> bool:
        """Whether every pair was judged within the budget."""
        return not self.count("unasked")

    @property
    def disagreements(self) -> int:
        """Pairs on which the two orders disagree; they count as ties."""
        return sum(verdict.disagrees for verdict in self.verdicts)

    @property
    def flips(self) -> int:
        """Pairs on which both orders chose the same position."""
        return sum(verdict.flips for verdict in self.verdicts)

    @property
    def parse_failures(self) -> int:
        """Replies without a verdict."""
        return sum(vote == "unparsed" for verdict in self.verdicts for vote in verdict.votes)

    @property
    def replies(self) -> int:
        """Total number of replies."""
        return sum(len(verdict.votes) for verdict in self.verdicts)

    def scores(self) -> dict[str, float]:
        """Prompt id -> mean of 1 for ``a``, 0 for ``b`` and .5 for a tie; pairs without a verdict are skipped.

        ``non_inferior(np.array(list(scores().values())), np.full(n, .5), margin)`` tests ``a`` against ``b``.
        """
        return scores_of(self.verdicts)

    def __str__(self) -> str:
        place = f"{self.position.share:.0%} for the first place (z {self.position.z:+.1f})"
        rate = "no verdicts" if self.win_rate is None else f"win rate {self.win_rate}"
        counts = f"{self.count('a')} won, {self.count('tie')} tied, {self.count('b')} lost"
        lines = [
            f"{self.judge}: {rate} over {len(self.scores())} prompts; {counts}",
            f"  {self.disagreements} ties by disagreement, {self.flips} of them flips; {place}",
            f"  {self.parse_failures} of {self.replies} replies unparsed, {self.count('unparsed')} pairs left out",
            f"  {self.asked} asked, {self.cached} cached, {self.retries} retries, ${self.cost:.4f}",
        ]
        if not self.complete:
            lines.append(
                f"  stopped by max_cost: {self.count('unasked')} of {len(self.verdicts)} pairs were not judged"
            )
        if len(self.served) > 1:
            lines.append(f"  served by several models: {', '.join(self.served)}")
        return "\n".join(lines)


def scores_of(verdicts: Sequence[PairVerdict]) -> dict[str, float]:
    """See :meth:`JudgeReport.scores`."""
    found: dict[str, list[float]] = {}
    for verdict in verdicts:
        if verdict.outcome in SCORES:
            found.setdefault(verdict.prompt_id, []).append(SCORES[verdict.outcome])
    return {prompt_id: float(np.mean(values)) for prompt_id, values in found.items()}


def win_rate(verdicts: Sequence[PairVerdict]) -> Interval | None:
    """The win rate of ``a`` over prompts, averaged over seeds first; ``None`` without any verdict."""
    values = np.array(list(scores_of(verdicts).values()))
    if not len(values):
        return None
    ahead = score_interval(2 * values - 1)  # a tie is a prompt without a difference
    return replace(ahead, **{name: (1 + getattr(ahead, name)) / 2 for name in ("estimate", "low", "high")})


def position_bias(verdicts: Sequence[PairVerdict]) -> PositionBias:
    """Counts the positions chosen by all votes."""
    votes = [vote for verdict in verdicts for vote in verdict.votes]
    return PositionBias(votes.count("first"), votes.count("second"))


Vote: TypeAlias = Literal["first", "second", "tie", "unparsed"]
"""Vote of one reply on the image shown first and the one shown second."""

OPENING = (
    "You will see two images that were made for the same text prompt. Compare how well each shows what the prompt asks "
    "for: every object, how many there are, their colours and where they are; and then how clean it is, without "
    "artefacts. Neither the order in which the images are shown nor their labels say anything about their quality."
)
CLOSING = (
    "Which image is better? Explain in one or two sentences. Then end with exactly one line, one of these three:\n"
    "VERDICT: FIRST\nVERDICT: SECOND\nVERDICT: TIE"
)

# Reasoning text that a server did not remove: closed, opened in the prompt, or truncated.
_THINKING = re.compile(
    r"<(think|thinking)>.*?</\1>|\A(?:(?!<think).)*?</think(?:ing)?>|<think(?:ing)?>.*\Z", re.IGNORECASE | re.DOTALL
)
_VERDICT = re.compile(r"VERDICT\W*(FIRST|SECOND|TIE)\b", re.IGNORECASE)


def question(prompt: str, first: bytes, second: bytes) -> tuple[Part, ...]:
    """The parts of one request: neutral labels, no sampler's name, images as PNG files."""
    # JSON quotes the prompt, so that quotes or line breaks in it cannot change the question.
    asked = f"The prompt: {json.dumps(prompt, ensure_ascii=False)}"
    return (f"{OPENING}\n\n{asked}\n\nFirst image:", first, "Second image:", second, CLOSING)


def template_digest() -> str:
    """12 hex digits that change with the wording; verdicts under other wordings are not comparable."""
    return hashlib.sha256(f"{OPENING}\x1f{CLOSING}".encode()).hexdigest()[:12]


def read_vote(text: str) -> Vote:
    r"""The verdict of a reply; ``unparsed`` when there is none, or when there are several that disagree.

    Text within ``<think>`` tags is ignored.

    >>> read_vote("Both show a dog.\n**Verdict:** FIRST"), read_vote("VERDICT: TIE"), read_vote("The first one.")
    ('first', 'tie', 'unparsed')
    """
    found = {word.lower() for word in _VERDICT.findall(_THINKING.sub("", text))}
    for vote in ("first", "second", "tie"):
        if found == {vote}:
            return vote  # type: ignore[return-value]
    return "unparsed"
