"""Which model plays an agent, and how far it may go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from diffing.agents.pace import Budget
from diffing.agents.prices import PARTS, SCRIPTED, Price, price_of
from diffing.agents.spending import Tariff
from diffing.agents.task import Access
from diffing.errors import InvalidSetting
from diffing.specs import JSON


@dataclass(frozen=True)
class Agent:
    """Which model plays the agent, and how far it may go."""

    model: str
    """As Inspect AI names it: `anthropic/...`, `openai/...`, `openai-api/<service>/...`, `scripted/words`."""
    turns: int = 30
    """Messages of the model per sample. The last may only submit, and is asked for once more if it did not."""
    tokens: int | None = None
    """Limit on the tokens of a sample, input and output. Where it comes near, the next turn may only submit."""
    seconds: int | None = None
    """Limit on the time of a sample, likewise."""
    dollars: int | float | None = None
    """Limit on the cost of a sample, likewise. A call that could pass it is not made."""
    max_dollars: int | float | None = None
    """Limit on the cost of the evaluation. A sample begins where its own limit fits into what is left."""
    prices: Mapping[str, int | float] | None = None
    """Dollars per million tokens of a model that `diffing.agents.prices` does not know: input, output, cache_write and
    cache_read."""
    repeats: int = 1
    """Independent runs of each case, access and budget."""
    access: Sequence[str] = (Access.METHOD.value,)
    """What it may look at, each for itself: see `Access`."""
    interactions: Sequence[int] = (0,)
    """Budgets of texts that live models generate, each for itself."""
    generation: Mapping[str, JSON] = field(default_factory=dict)
    """Inspect's `GenerateConfig`: temperature, seed, max_connections, max_retries, reasoning_effort, ..."""

    def __post_init__(self) -> None:
        price_of(self.model, self.prices)
        if self.turns < 2 or self.repeats < 1:
            raise InvalidSetting(f"an agent needs turns >= 2 and repeats >= 1, got {self.turns} and {self.repeats}")
        unknown = [name for name in self.access if name not in [*Access]]
        if unknown or not self.access or not self.interactions or min(self.interactions) < 0:
            raise InvalidSetting(
                f"an agent needs one access or more of {', '.join(Access)}, and budgets of interactions that are 0 or "
                f"more; got access {list(self.access)} and interactions {list(self.interactions)}"
            )

        self._check_dollars()

    def _check_dollars(self) -> None:
        """Raises InvalidSetting for a limit that could not be kept."""
        caps = [cap for cap in (self.dollars, self.max_dollars) if cap is not None]
        if not caps:
            return
        if min(caps) <= 0 or self.dollars is None or caps[-1] < self.dollars:
            raise InvalidSetting(
                "limits in dollars are more than 0, and max_dollars needs one for each sample that fits into it; got "
                f"max_dollars {self.max_dollars} and dollars {self.dollars}: type agent.dollars=..."
            )
        if self.price is None:
            raise InvalidSetting(
                f"a limit in dollars needs the price of {self.model}, which is not known: type "
                f"'agent.prices={{{', '.join(f'{part}: ...' for part in PARTS)}}}' in dollars per million tokens"
            )
        if self.max_tokens < 1 and self.model != SCRIPTED:
            raise InvalidSetting(
                "a limit in dollars needs a limit on the length of an answer: type agent.generation.max_tokens=8000"
            )

    @property
    def price(self) -> Price | None:
        return price_of(self.model, self.prices)

    @property
    def max_tokens(self) -> int:
        """Most tokens that are paid for as one answer; 0 if there is no limit."""
        longest, choices = (self.generation.get(name) for name in ("max_tokens", "num_choices"))
        return int(str(longest or 0)) * int(str(choices or 1))

    @property
    def budget(self) -> Budget:
        return Budget(self.turns, self.seconds, Tariff(self.price, self.max_tokens, self.dollars))

    @property
    def asks_live_models(self) -> bool:
        return max(self.interactions) > 0 and any(name != Access.SCRIPTED for name in self.access)
