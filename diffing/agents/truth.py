"""What is true about an organism: what submissions are graded against. It never enters Evidence or a report."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from diffing.errors import InvalidSetting


@dataclass(frozen=True)
class Fact:
    """One thing that the finetune taught, and the words by which a guess of it is recognised.

    A keyword may be several words (found in this order, side by side) and may name alternatives: `tea|brew`.
    """

    statement: str
    keywords: Sequence[str]
    essential: bool = False
    """No guess is right that misses it: levels 4 and 5 need it (see `diffing.agents.rubrics`)."""
    gist: Sequence[str] = field(default_factory=list)
    """Words by which a vaguer form is recognised, all of them in one claim; empty if there is none."""

    def __post_init__(self) -> None:
        if not [word for word in self.keywords if word.strip(" |")]:
            raise InvalidSetting(f"fact '{self.statement}' has no keywords; it could never be found")


@dataclass(frozen=True)
class GroundTruth:
    """The answer for one pair. Without facts, the pair is a null control: nothing meaningful was changed."""

    organism_type: str
    description: str
    facts: Sequence[Fact] = ()
    domain_words: Sequence[str] = ()
    """Words of the domain as a whole; the same grammar as keywords."""

    @property
    def is_null(self) -> bool:
        return not self.facts

    def as_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "GroundTruth":
        """Inverse of `as_json`."""
        values = json.loads(text)
        return cls(**{**values, "facts": [Fact(**fact) for fact in values["facts"]]})
