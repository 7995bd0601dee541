"""All results of a project on one page: `python -m diffing.dashboard --help`."""

import argparse
import logging
import os
from pathlib import Path

from diffing.dashboard.site import write_site
from diffing.dashboard.study import Dashboard, gather, possible_names, report_names
from diffing.entry import console
from diffing.errors import MissingInput
from trackers import LocalStore, LocalTracker, Tracker, WandbTracker, auto_tracker

log = logging.getLogger("diffing.dashboard")
STORE = "outputs/store"


def main() -> None:
    """Command line."""
    options = _parser().parse_args()
    console.set_up_logging()
    with console.errors_without_traceback():
        dashboard = _gathered(options)
        lines = {"reports": str(len(dashboard.results)), "page": str(write_site(dashboard, options.out).resolve())}
        if options.wandb:
            lines["W&B Report"] = _saved(dashboard, options.entity)
        console.summary(dashboard.title, lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m diffing.dashboard",
        description="Gather the newest report of each method on each organism, with agents' grades, and write them as "
        "static HTML pages with an index; with --wandb, as a W&B Report too.",
    )
    add = parser.add_argument
    add("--tracker", choices=("auto", "local", "wandb"), default="auto", help="where the reports are (default: auto)")
    add("--root", type=Path, default=Path(os.environ.get("TRACKER_ROOT", STORE)), help="the local store's folder")
    add("--project", default="model-diffing", help="the tracker's project (default: model-diffing)")
    add("--entity", help="W&B user or team (default: that of the API key)")
    add("--out", type=Path, default=Path("outputs/dashboard"), help="folder of the pages")
    add("--title", help="default: the project")
    add(
        "--wandb", action="store_true", help="save a W&B Report in the project too; its panels show runs that are there"
    )
    return parser


def _gathered(options: argparse.Namespace) -> Dashboard:
    tracker = _tracker(options)
    names, runs = possible_names(), {}
    if not isinstance(tracker, WandbTracker):
        store = LocalStore.existing(options.root)
        names = report_names(store, options.project)
        runs = {str(version.ref): version.run for version in store.index.versions()}
    with tracker:
        return gather(tracker, names, options.title or options.project, runs)


def _tracker(options: argparse.Namespace) -> Tracker:
    where: tuple[Path, str, str] = (options.root, options.project, "dashboard")
    match options.tracker:
        case "local":
            return LocalTracker(*where, {})
        case "wandb":
            return WandbTracker(*where, {}, options.entity)
    chosen, line = auto_tracker(*where, {}, options.entity)
    log.info(line)
    return chosen


def _saved(dashboard: Dashboard, entity: str | None) -> str:
    """Saves the W&B Report and returns its address."""
    try:
        from diffing.dashboard.wandb_report import save
    except ModuleNotFoundError as error:
        raise MissingInput(f"a W&B Report needs {error.name}: pip install 'model-diffing[wandb-reports]'") from error
    return save(dashboard, entity)


if __name__ == "__main__":
    main()
