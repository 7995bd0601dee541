"""What a sample has come to; kept in Inspect's log, so that a stored run can be graded anew."""

from enum import StrEnum

from inspect_ai.util import StoreModel
from pydantic import Field

from diffing.agents.grading import Submission


class Outcome(StrEnum):
    """How a sample ended. Every sample has one, and all of them stay in the denominator."""

    SUBMITTED = "submitted"
    NO_SUBMISSION = "no_submission"
    """Turns, tokens, time or context ran out, and the submission that was then asked for did not come."""
    LEAKED = "leaked"
    """A text for the model held a name of the pair; the model never got it."""
    REFUSED = "refused"
    ERROR = "error"
    NOT_RUN = "not_run"
    """The cap of the evaluation left too few dollars for it."""


class Progress(StoreModel):
    """The running state of a sample."""

    submission: dict | None = None
    outcome: str | None = None
    detail: str = ""
    forced: str = ""
    """Which budget ended the investigation: turns, tokens, seconds, dollars or interactions. Empty if none did."""
    unmetered: int = 0
    """Answers of the model whose usage the service did not tell."""
    interactions: int = 0
    """Paid for: one for each text that a live model generated, and what other questions to it cost."""
    asked_again: int = 0
    """Requests repeated because what came was no whole reply; what clients repeat themselves is not among them."""
    guessed: list[str] = Field(default_factory=list)
    """Names of the pair that the agent wrote itself, before anybody told it."""

    def submitted(self) -> Submission | None:
        return Submission(**self.submission) if self.submission else None
