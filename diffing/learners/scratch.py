"""Where a fit keeps what it has so far, so that one that was killed goes on when it is run again.

    <digest of a recipe>/         a finished learner, which appears whole
    <digest of a recipe>.ckpt     the training of one that is not finished

Named by recipes, which say all that a learner depends on: what other settings left is never picked up.
"""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from diffing.activations.exclusive import temporary
from diffing.errors import StorageFailed
from diffing.learners.base import Learner, Recipe, load_learner

log = logging.getLogger(__name__)
Fitted = TypeVar("Fitted", bound=Learner)


@dataclass(frozen=True)
class Scratch:
    """A folder that only one process at a time may use."""

    folder: Path | None = None
    """None keeps nothing."""
    every_n_steps: int = 1000
    """Steps of the optimiser from one checkpoint to the next."""

    def checkpoint(self, recipe: Recipe) -> Path | None:
        """The file that holds the training of that learner, if one was begun."""
        return None if self.folder is None else self.folder / f"{recipe.digest}.ckpt"

    def fitted(self, recipe: Recipe, fit: Callable[[], Fitted]) -> Fitted:
        """The learner of `recipe` that was finished before, or else what `fit` makes, which is kept."""
        if self.folder is None:
            return fit()
        final = self.folder / recipe.digest
        if final.is_dir():
            log.info("the %s of layer %d was fitted before the interruption", recipe.kind, recipe.layer)
            return cast(Fitted, load_learner(final))
        learner = fit()
        _keep(learner, final)
        final.with_name(f"{recipe.digest}.ckpt").unlink(missing_ok=True)
        return learner

    def remove(self) -> None:
        """Once all that it is for is kept elsewhere. What cannot be removed is left."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _keep(learner: Learner, final: Path) -> None:
    unfinished = temporary(final)
    learner.save(unfinished)
    try:
        os.rename(unfinished, final)
    except OSError as error:
        # Without file locks two processes may have fitted it at once, to the same result.
        shutil.rmtree(unfinished, ignore_errors=True)
        if not final.is_dir():
            raise StorageFailed(f"cannot keep the finished learner as {final}: {error}") from error
