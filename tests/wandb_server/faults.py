"""A server on a bad day: some requests are refused, lost, slow, or answered with wrong bytes."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum


class Fault(Enum):
    """What happens to one request."""

    TOO_MANY = 429
    FAILED = 500
    DROPPED = "carried out, then the connection is closed without an answer"
    SLOW = "answered late"
    DAMAGED = "a downloaded file comes with its first byte changed"


SLOW_SECONDS = 0.3


class Faults:
    """Gives a `share` of requests one of `kinds`, drawn with a seed; `met` counts what was given.

    `among` says which requests can be hit, by method and path; without it, all. Nothing goes wrong until `inject`.
    """

    def __init__(self) -> None:
        self._lock, self._chance = threading.Lock(), random.Random(0)
        self.inject([], 0.0)

    def inject(
        self,
        kinds: Sequence[Fault],
        share: float,
        among: Callable[[str, str], bool] = lambda method, path: True,
    ) -> None:
        self._kinds, self._share, self._among = list(kinds), share, among
        self.met: Counter[Fault] = Counter()
        self.requests = 0

    def draw(self, method: str, path: str) -> Fault | None:
        with self._lock:
            if not self._kinds or not self._among(method, path):
                return None
            self.requests += 1
            if self._chance.random() >= self._share:
                return None
            fault = self._chance.choice(self._kinds)
            self.met[fault] += 1
            return fault
