"""KL over the vocabulary in chunks, against two full tensors of logits: peak memory and speed of the logits part.

    python benchmarks/kl.py [--batch 4] [--pos 1024] [--vocab 49152] [--width 576] [--rounds 7]

Both read the same hidden states with the same head and final norm in float32, and give KL(finetuned || base) per token.
The chunked way also sums the contribution and both probabilities of every vocabulary item. Memory is that of a fresh
process, less that of one that only makes the inputs. Speed is in tokens a second over interleaved rounds; the ratio is
the median over rounds. To be held: less memory than one [batch, pos, vocab] float32 tensor, 0.9 of the speed,
and 1e-4 of a float64 reference.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.peak import own_peak_mib
from diffing.lenses.divergence import Divergence, VocabularySums, divergences
from diffing.models.sites import Logits

DTYPES = ("float32", "bfloat16")
CHECKED = 256
"""Tokens that are compared with float64."""


def inputs(args: argparse.Namespace, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """Head, and normed hidden states of both sides, whose mean KL is about 0.05."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(args.vocab, args.width, generator=random).mul_(args.width**-0.5).to(getattr(torch, dtype))
    base = torch.randn(args.batch * args.pos, args.width, generator=random).mul_(3.0)
    return weight, base, torch.randn(base.shape, generator=random).mul_(0.3).add_(base)


def chunked(weight: Tensor, base: Tensor, finetuned: Tensor) -> Tensor:
    sums = VocabularySums.zero(len(weight))
    kinds = [Divergence.KL_FINETUNED_BASE]
    return divergences(Logits(base, weight), Logits(finetuned, weight), kinds, sums)[:, 0]


def naive(weight: Tensor, base: Tensor, finetuned: Tensor) -> Tensor:
    head = weight.to(base.dtype)
    log_base, log_finetuned = ((hidden @ head.T).log_softmax(-1) for hidden in (base, finetuned))
    return (log_finetuned.exp() * (log_finetuned - log_base)).sum(-1)


WAYS = {"chunked": chunked, "two full tensors": naive}


def peak_mib(case: Sequence[str]) -> float:
    """Peak resident memory of a fresh process that runs `case`, of this script's arguments."""
    command = [sys.executable, __file__, *sys.argv[1:], "--case", *case]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def tokens_per_second(made: Sequence[Tensor], n_rounds: int) -> dict[str, list[float]]:
    """Per way and round."""
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(n_rounds):
        for name, way in WAYS.items():
            since = time.perf_counter()
            way(*made)
            found[name].append(len(made[1]) / (time.perf_counter() - since))
    return found


def errors(weight: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, float]:
    """Per way, the largest relative error against float64 at some tokens; also warms both up."""
    few = slice(CHECKED)
    exact = naive(weight.double(), base[few].double(), finetuned[few].double())
    return {
        name: float(((way(weight, base[few], finetuned[few]) - exact) / exact).abs().max())
        for name, way in WAYS.items()
    }


def main() -> None:
    """Command line: see above."""
    parser = argparse.ArgumentParser()
    for name, default in (("batch", 4), ("pos", 1024), ("vocab", 49_152), ("width", 576), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--case", nargs=2, metavar=("DTYPE", "WAY"), help="run one case and print its peak memory")
    args = parser.parse_args()
    if args.case:
        dtype, way = args.case
        made = inputs(args, dtype)
        if way in WAYS:
            WAYS[way](*made)
        print(own_peak_mib())
        return
    one = args.batch * args.pos * args.vocab * 4 / 2**20
    print(
        f"One [{args.batch}, {args.pos}, {args.vocab}] float32 tensor: {one:.0f} MiB; {torch.get_num_threads()} threads"
    )
    heads = ("head", "way", "MiB", "of one tensor", "tokens/s", "of two full tensors", "largest relative error")
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for dtype in DTYPES:
        nothing = peak_mib([dtype, "inputs"])
        made = inputs(args, dtype)
        wrong, speeds = errors(*made), tokens_per_second(made, args.rounds)
        for name, rounds in speeds.items():
            memory = peak_mib([dtype, name]) - nothing
            ratio = statistics.median(own / full for own, full in zip(rounds, speeds["two full tensors"], strict=True))
            bars = (" (bar < 1)", " (bar 0.9)", " (bar 1e-4)") if name == "chunked" else ("", "", "")
            print(
                f"| {dtype} | {name} | {memory:.0f} | {memory / one:.2f}{bars[0]} | {statistics.median(rounds):,.0f} | "
                f"{ratio:.2f}{bars[1]} | {wrong[name]:.0e}{bars[2]} |"
            )


if __name__ == "__main__":
    main()
