"""Peak memory of a LoRA pair against one model and against two, each in a process of its own.

    python benchmarks/pair_memory.py

Prints the peak resident memory of: the libraries alone, the base model alone, the LoRA pair with both sides run, and
two copies of the base. What matters is the pair's share of one model, libraries taken off: 1 means one copy of the
weights.
"""

import subprocess
import sys

from benchmarks.peak import own_peak_mib
from diffing.axes import Side
from diffing.demo.train import base_model
from diffing.models.pair import ModelPair
from diffing.models.sites import residuals
from diffing.models.sources import pin
from diffing.specs import PairSpec, VariantSpec
from diffing.text.windows import pad

BASE = base_model()
ADAPTER = VariantSpec(kind="lora", id="package://diffing.demo/adapters/demo_glacier_tea")
CASES = ("libraries", "one model", "LoRA pair", "two models")


def load(case: str) -> None:
    """Builds what the case names and runs one short forward on each model in it."""
    if case == "libraries":
        return
    variant = ADAPTER if case == "LoRA pair" else VariantSpec(kind="identical")
    pairs = [ModelPair(pin(PairSpec(BASE, variant, "demo")), "cpu") for _ in range(2 if case == "two models" else 1)]
    batch = pad([[1, 2, 3, 4]], pad_id=0, side="right")
    for pair in pairs:
        for side in Side:
            with pair.using(side) as model:
                residuals(model, batch, [pair.n_layers - 1])  # the last, so that all weights are read


def peak_mib(case: str) -> float:
    """Peak resident memory of a fresh process that loads `case`."""
    command = [sys.executable, __file__, case]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    """Command line: all cases, or the one named by the first argument."""
    if len(sys.argv) > 1:
        load(sys.argv[1])
        print(own_peak_mib())
        return
    peak_mib("one model")  # so that no counted case pays for the one-time conversion
    peaks = {case: peak_mib(case) for case in CASES}
    model = peaks["one model"] - peaks["libraries"]
    print("| case | peak, MiB | less libraries, MiB | share of one model |\n|---|---|---|---|")
    for case, peak in peaks.items():
        own = peak - peaks["libraries"]
        print(f"| {case} | {peak:.0f} | {own:.0f} | {own / model:.2f} |")


if __name__ == "__main__":
    main()
