"""What tokens cost, in dollars. A model without a price costs an unknown amount, which is never 0.

The table holds list prices of the provider's own service as they were known on the day given, entered by hand: compare
them with the source before you rely on a limit. Anything else (another service, a discount, a newer model) is for
whoever runs it to say: `agent.prices`. While a model is used,
Inspect knows its price (`known_to_inspect`), because only it knows for how long a prompt was cached, and by which model
a call was answered.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from inspect_ai.model import (
    Model,
    ModelCost,
    ModelInfo,
    ModelUsage,
    compute_model_cost,
    get_model_info,
    set_model_info,
)  # fmt: skip

from diffing.errors import InvalidSetting

SCRIPTED = "scripted/words"
PARTS = ("input", "output", "cache_write", "cache_read")


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens. Inputs are those that no cache holds, those written to one (for five minutes; for an
    hour they cost more, as Inspect knows) and those read from one; outputs include reasoning."""

    input: float
    output: float
    cache_write: float
    cache_read: float
    date: str = ""
    """When it was entered."""
    source: str = "agent.prices"

    def __post_init__(self) -> None:
        wrong = {part: getattr(self, part) for part in PARTS if not 0 <= getattr(self, part) < float("inf")}
        if wrong:
            raise InvalidSetting(f"prices are dollars per million tokens, 0 or more; got {wrong}")

    @property
    def cost(self) -> ModelCost:
        return ModelCost(
            input=self.input,
            output=self.output,
            input_cache_write=self.cache_write,
            input_cache_read=self.cache_read,
        )

    def most(self, input_tokens: int, output_tokens: int) -> float:
        """Dollars of a call with at most so many tokens, however it is cached: for an hour, in the worst case."""
        uncached = compute_model_cost(self.cost, ModelUsage(input_tokens=input_tokens))
        written = compute_model_cost(self.cost, ModelUsage(input_tokens_cache_write=input_tokens), "1h")
        return max(uncached, written) + compute_model_cost(self.cost, ModelUsage(output_tokens=output_tokens))


def _listed(input: float, output: float, cache_write: float, cache_read: float) -> Price:
    source = "https://platform.claude.com/docs/en/about-claude/pricing"
    return Price(input, output, cache_write, cache_read, "2026-11-23", source)


_OPUS = _listed(5.0, 25.0, 6.25, 0.5)
_OLD_OPUS = _listed(15.0, 75.0, 18.75, 1.5)
_SONNET = _listed(3.0, 15.0, 3.75, 0.3)
PRICES: Mapping[str, Price] = {
    "anthropic/claude-opus-5-5": _listed(4.0, 20.0, 5.0, 0.2),
    "anthropic/claude-opus-5": _OPUS,
    "anthropic/claude-opus-4-8": _OPUS,
    "anthropic/claude-opus-4-7": _OPUS,
    "anthropic/claude-opus-4-6": _OPUS,
    "anthropic/claude-opus-4-5": _OPUS,
    "anthropic/claude-opus-4-1": _OLD_OPUS,
    "anthropic/claude-opus-4-0": _OLD_OPUS,
    "anthropic/claude-opus-4": _OLD_OPUS,
    "anthropic/claude-sonnet-4-6": _SONNET,
    "anthropic/claude-sonnet-4-5": _SONNET,
    "anthropic/claude-sonnet-4-0": _SONNET,
    "anthropic/claude-sonnet-4": _SONNET,
    "anthropic/claude-haiku-4-5": _listed(1.0, 5.0, 1.25, 0.1),
    SCRIPTED: Price(0.0, 0.0, 0.0, 0.0, source="no paid model"),
}
"""By the name that Inspect AI gives a model, a date at its end left out."""


def price_of(model: str, given: Mapping[str, int | float] | None = None) -> Price | None:
    """The price of `model`: the one `given` in dollars per million tokens (all of PARTS), or that of the table."""
    if not given:
        return PRICES.get(model) or PRICES.get(re.sub(r"-20\d{6}$", "", model))
    if set(given) != set(PARTS):
        raise InvalidSetting(f"agent.prices needs {', '.join(PARTS)}, each once; got {', '.join(given) or 'none'}")
    return Price(float(given["input"]), float(given["output"]), float(given["cache_write"]), float(given["cache_read"]))


def dollars(model: str, usage: ModelUsage) -> float | None:
    """What a usage cost: as Inspect noted it when the call was made, or by the table; None without a price."""
    if usage.total_cost is not None:
        return usage.total_cost
    price = price_of(model)
    return None if price is None else compute_model_cost(price.cost, usage)


@contextmanager
def known_to_inspect(model: Model, price: Price | None) -> Iterator[None]:
    """Inspect notes the cost of each call of `model` within the block."""
    before = get_model_info(model)
    if price is None and (before is None or before.cost is None):
        yield
        return
    known = before or ModelInfo()
    set_model_info(str(model), known.model_copy(update={"cost": price and price.cost}))
    try:
        yield
    finally:
        set_model_info(str(model), known)
