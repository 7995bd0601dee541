"""How fast a training goes, and what share of its time it waits for rows."""

import time

from lightning.pytorch import Trainer


class Pace:
    """A stopwatch for laps of a training: from its start, or from the end of the lap before."""

    def __init__(self) -> None:
        self._carried = (0.0, 0.0)
        self._since = (time.perf_counter(), 0.0)

    def start(self, trainer: Trainer) -> None:
        """Begins the lap, or goes on with the one that `restore` gave."""
        now = self._now(trainer)
        self._since = (now[0] - self._carried[0], now[1] - self._carried[1])

    def lap(self, trainer: Trainer, rows: int) -> dict[str, float]:
        """Rows per second, and the share of the time that this process waited for them; begins the next lap."""
        seconds, stalled = self.state(trainer)
        self._since = self._now(trainer)
        return {"rows_per_second": rows / seconds, "stall_share": stalled / seconds}

    def state(self, trainer: Trainer) -> tuple[float, float]:
        """Seconds of the lap so far, and of these the seconds waited."""
        now = self._now(trainer)
        return now[0] - self._since[0], now[1] - self._since[1]

    def restore(self, state: tuple[float, float]) -> None:
        """Takes the lap up again where `state` was asked for; time since then does not count."""
        self._carried = state

    @staticmethod
    def _now(trainer: Trainer) -> tuple[float, float]:
        """The clock, and the seconds waited in all; loaders that do not count them make nobody wait."""
        return time.perf_counter(), getattr(trainer.train_dataloader, "stall_seconds", 0.0)
