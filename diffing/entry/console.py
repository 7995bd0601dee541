"""What a person at a terminal sees: progress bars, the closing summary, and errors without tracebacks."""

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

import pandas as pd
from hydra.errors import InstantiationException
from rich.console import Console
from rich.logging import RichHandler
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from diffing.errors import DiffingError
from diffing.methods.base import Advance
from trackers import TrackerError

console = Console()


class Bars:
    """Progress of a method as one bar per stage, with the time it took and the time that is left."""

    @contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left:"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(title, total=total)
            yield lambda units: progress.advance(task, units)


def set_up_logging() -> None:
    """Our own messages, one line each; warnings only of the libraries below."""
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", force=True,
        handlers=[RichHandler(console=console, show_time=False, show_path=False, show_level=False, markup=False)],
    )  # fmt: skip
    for name in ("diffing", "trackers"):
        logging.getLogger(name).setLevel(logging.INFO)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    disable_progress_bar()  # transformers' own: a bar per shard of weights says nothing that a person waits for


@contextmanager
def errors_without_traceback() -> Iterator[None]:
    """Ends the process with status 2 and the message of what a user can mend."""
    try:
        yield
    except (DiffingError, TrackerError) as error:
        _refuse(str(error))
    except InstantiationException as error:
        # Hydra wraps what a settings class refuses, and an unknown key.
        _refuse(f"{error.__cause__ or error}")


def _refuse(message: str) -> NoReturn:
    console.print("[bold red]error:[/] ", end="")
    console.print(message, markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)


def summary(title: str, lines: Mapping[str, str], findings: Sequence[str] = ()) -> None:
    """The closing panel: what was found, and where everything is."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for claim in findings:
        table.add_row("finding", claim)
    for label, text in lines.items():
        table.add_row(label, text)
    console.print(Panel(table, title=title, expand=False))


def markdown(frame: pd.DataFrame) -> str:
    """A Markdown table, aligned to be read as text too."""
    cells = [list(frame.columns), *frame.astype(str).to_numpy().tolist()]
    widths = [max(len(row[column]) for row in cells) for column in range(len(frame.columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
