"""Costs of a run: prices, estimates, and an enforced limit."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from addiffusion_env.errors import ConfigError, unknown
from addiffusion_lab.vlm.client import Reply, VlmClient

PRICES_OF = "2026-03"
"""Date of the prices below. Providers change them: pass ``price`` to be sure."""


@dataclass(frozen=True)
class Price:
    """Price of tokens.

    Attributes:
        input: US dollars per million input tokens.
        output: US dollars per million output tokens.
    """

    input: float
    output: float

    def __post_init__(self) -> None:
        """Refuses invalid prices; 0 is valid, for your own servers."""
        if not (self.input >= 0 and self.output >= 0):
            raise ConfigError(f"prices must be 0 or more, got {self.input} and {self.output}", "0 for a local server")

    def of(self, input_tokens: float, output_tokens: float) -> float:
        """US dollars for that many tokens."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


PRICES: Mapping[str, Price] = {
    "openai:gpt-4o-2024-08-06": Price(2.50, 10.00),
    "openai:gpt-4o-2024-11-20": Price(2.50, 10.00),
    "openai:gpt-4.1-2025-04-14": Price(2.00, 8.00),
    "gemini:gemini-2.5-flash": Price(0.30, 2.50),
    "gemini:gemini-2.5-pro": Price(1.25, 10.00),
}
"""Known judges; any other needs its own ``price``."""


def price_of(client: VlmClient, price: Price | None) -> Price:
    """``price``, or the listed one of the client's model.

    Raises:
        UnknownNameError: for a model that is not listed when no price is given.
    """
    if price is not None:
        return price
    if client.identity not in PRICES:
        error = unknown("price of judge", client.identity, PRICES)
        raise type(error)(
            error.cause, f"pass price=Price(input=..., output=...) in dollars per million; {error.remedy}"
        )
    return PRICES[client.identity]


class OverBudgetError(Exception):
    """The next attempt might exceed the limit; caught by the judge, which then stops."""


class Ledger:
    """Spent and reserved costs, for several threads. The limit is never exceeded knowingly.

    Each attempt first reserves its maximum cost, and is then settled at its actual cost. An attempt that failed after
    the service was reached is booked at its maximum, since the charge is unknown. Tokens of images are estimated
    until the service has reported some; from then on the estimates are scaled to its counts.

    Args:
        client: estimates the tokens of images.
        price: price of tokens.
        max_cost: limit of a run in US dollars.
    """

    def __init__(self, client: VlmClient, price: Price, max_cost: float) -> None:
        if not max_cost >= 0:
            raise ConfigError(f"max_cost must be 0 or more dollars, got {max_cost}", "pass the limit of the run's cost")
        self.client = client
        self.price = price
        self.max_cost = float(max_cost)
        self.spent = 0.0
        self._open: list[float] = []  # maximum costs of running attempts
        self._factor = 1.0  # largest ratio of reported to estimated tokens so far
        self._exhausted = False
        self._settled = threading.Condition()

    def input_tokens(self, text_length: int, width: int, height: int) -> float:
        """Estimate for one question: two images, and one token per three characters (English: one per four)."""
        return text_length / 3 + 2 * self.client.image_tokens(width, height)

    def most(self, input_tokens: float) -> float:
        """Maximum cost in US dollars of a question with that many estimated tokens, including the longest reply."""
        return self.price.of(input_tokens * self._factor, self.client.max_output_tokens)

    def reserve(self, input_tokens: float) -> float:
        """Reserves the cost of one attempt and returns it. Waits while running attempts may release enough.

        Raises:
            OverBudgetError: when the limit might be exceeded, and on every later call.
        """
        with self._settled:
            while not self._exhausted:
                amount = self.most(input_tokens)
                if self.spent + sum(self._open) + amount <= self.max_cost:
                    self._open.append(amount)
                    return amount
                if self._open:
                    self._settled.wait()
                else:
                    self._exhausted = True
            raise OverBudgetError

    def settle(self, reserved: float, estimated: float, reply: Reply) -> None:
        """Books the cost of a reply, at its maximum where the service did not count, and updates the estimates."""
        with self._settled:
            self._open.remove(reserved)
            counted = reply.output_tokens or (reply.input_tokens and not reply.text)  # a refusal may have no output
            output = reply.output_tokens if counted else self.client.max_output_tokens
            self.spent += self.price.of(reply.input_tokens or estimated * self._factor, output)
            self._factor = max(self._factor, reply.input_tokens / estimated)
            self._settled.notify_all()

    def fail(self, reserved: float, billed: bool) -> None:
        """Books a failed attempt at its maximum if it may have been charged, otherwise not at all."""
        with self._settled:
            self._open.remove(reserved)
            self.spent += reserved if billed else 0.0
            self._settled.notify_all()
