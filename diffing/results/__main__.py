"""What many evaluations come to: `python -m diffing.results --help`."""

import argparse
import os
from pathlib import Path

from diffing.entry import console
from diffing.results import output
from diffing.results.collect import of_paths, of_store
from diffing.results.ordinal import Sampling
from diffing.results.results import compute

EPILOG = """
Counts, rates and intervals are over the newest evaluations of a project: for each agent, access and budget the newest
version of an evaluation that has it. Failed samples stay in every denominator of what counts samples.

  python -m diffing.results                                   the local store of this folder
  python -m diffing.results --out outputs/results --model     a page with figures, CSV files, and the ordinal model
  python -m diffing.results outputs/agents/*.eval             Inspect's logs alone; levels by judges are not in them
"""


def main() -> None:
    """Command line."""
    options = _parser().parse_args()
    console.set_up_logging()
    with console.errors_without_traceback():
        found = of_paths(options.paths) if options.paths else of_store(options.root, options.project)
        sampling = Sampling(options.draws, options.draws, options.chains, seed=options.seed, progress=True)
        results = compute(found, sampling if options.model else None, options.resamples)
        print(output.text(results))
        if options.out:
            title = options.title or options.project
            print(f"\npage: {output.write(results, options.out, title).resolve()}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m diffing.results",
        description="Methods by organisms, sensitivity and false positives, what reports add over asking the models "
        "alone, agreement of judges, costs, and an ordinal model, from what evaluate_agents.py published.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("paths", nargs="*", type=Path, help=".eval logs, or folders with logs or evaluations, in place of the store")
    add("--root", type=Path, default=Path(os.environ.get("TRACKER_ROOT", "outputs/store")), help="the local store")
    add("--project", default="model-diffing", help="the tracker's project (default: model-diffing)")
    add("--out", type=Path, help="folder for a page (index.html) and CSV files")
    add("--title", help="of the page (default: the project)")
    add("--resamples", type=int, default=2000, help="of the bootstrap (default: 2000)")
    add("--model", action="store_true", help="fit the ordinal model: minutes; needs pip install -e .[statistics]")
    add("--draws", type=int, default=1000, help="of the model, per chain, after as many to tune (default: 1000)")
    add("--chains", type=int, default=4, help="of the model (default: 4)")
    add("--seed", type=int, default=0, help="of the model (default: 0)")
    return parser


if __name__ == "__main__":
    main()
