"""One training step of a sparse dictionary against plain autograd and other libraries, on the same rows in memory.

    pip install -c constraints.txt -e .[benchmarks]    # the other libraries; what is not there is left out
    python benchmarks/dictionary_step.py [rounds] [steps] [d_model] [latents] [k] [batch]

A step is the forward pass, all gradients and the optimiser's step, and for an SAE what keeps the decoder's rows at norm
1. `plain torch` is autograd over dense products with `topk` of all values and fused Adam, as ours. Every round gives
each case the same batches, and a case's time is the median of its steps; ratios are of the same round, and the table
has their medians. The loss is the squared error after the last step: of ours and plain torch from the same weights, so
it must agree. Other libraries start from and optimise what they ship. OMP_NUM_THREADS sets the threads.
"""

import contextlib
import io
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from diffing.learners.codes import BatchTopK, Codes, top_k
from diffing.learners.sparse import autoencode

Step = Callable[[Tensor], float | None]
"""Trains on a batch; gives the squared error before the step, if it is to be compared."""
Rule = Literal["top_k", "batch_top_k"]
LEARNING_RATE = 4e-4


@dataclass(frozen=True)
class Setting:
    """What is trained."""

    rule: Rule
    sides: int
    """1 for an SAE, 2 for a crosscoder."""
    d_model: int
    n_latents: int
    k: int

    @property
    def width(self) -> int:
        return self.sides * self.d_model

    def __str__(self) -> str:
        kind = "SAE" if self.sides == 1 else "crosscoder"
        return f"{self.rule} {kind}, {self.sides} x {self.d_model} -> {self.n_latents:,}, k={self.k}"


def made(n_rows: int, setting: Setting) -> Tensor:
    """Rows of 24 of 4,096 directions and noise; the second side has other noise."""
    random = torch.Generator().manual_seed(0)
    directions = functional.normalize(torch.randn(4096, setting.d_model, generator=random))
    odds = torch.arange(1, 4097).pow(-0.6)
    rows = torch.empty(n_rows, setting.sides, setting.d_model)
    for part in rows.split(8192):
        which = torch.multinomial(odds, 24 * len(part), replacement=True, generator=random).view(len(part), 24)
        sizes = torch.empty(len(part), 24).exponential_(generator=random) + 0.3
        signal = functional.embedding_bag(which, directions, mode="sum", per_sample_weights=sizes)
        part.copy_(signal[:, None] + 0.05 * torch.randn(part.shape, generator=random))
    return rows.flatten(1)


class Loop:
    """The training that ours and plain torch share; they differ in `reconstruct`."""

    def __init__(self, setting: Setting, reconstruct: Callable[["Loop", Tensor], Tensor]):
        random = torch.Generator().manual_seed(1)
        shape = setting.n_latents, 1, setting.d_model
        decoder = functional.normalize(torch.randn(shape, generator=random), dim=2).repeat(1, setting.sides, 1)
        self.setting, self.reconstruct = setting, reconstruct
        self.encoder = (decoder / setting.sides).flatten(1).requires_grad_()
        self.encoder_bias = torch.zeros(setting.n_latents, requires_grad=True)
        self.decoder = decoder.flatten(1).requires_grad_()
        self.decoder_bias = torch.zeros(setting.width, requires_grad=True)
        self.parameters = self.encoder, self.encoder_bias, self.decoder, self.decoder_bias
        self.optimizer = torch.optim.Adam(self.parameters, lr=LEARNING_RATE, fused=True)

    def weight(self) -> Tensor | None:
        """Of a crosscoder, the sum of each latent's norms."""
        if self.setting.sides == 1:
            return None
        return self.decoder.detach().unflatten(1, (2, -1)).norm(dim=2).sum(1)

    def __call__(self, rows: Tensor) -> float:
        loss = (self.reconstruct(self, rows) - rows).square().sum(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            if self.setting.sides == 1:
                gradient = self.decoder.grad
                assert gradient is not None
                gradient.addcmul_((gradient * self.decoder).sum(1, keepdim=True), self.decoder, value=-1)
            self.optimizer.step()
            if self.setting.sides == 1:
                self.decoder.div_(self.decoder.norm(dim=1, keepdim=True))
        return float(loss.detach())


def ours(setting: Setting, encoder_dtype: torch.dtype | None, sparse: bool = True) -> Step:
    batch_top_k = BatchTopK()

    def reconstruct(loop: Loop, rows: Tensor) -> Tensor:
        weight = loop.weight()

        def select(pre: Tensor) -> Codes:
            if setting.rule == "top_k":
                return top_k(pre, setting.k, weight)
            return batch_top_k(pre, setting.k, weight)

        centred = setting.sides == 1
        return autoencode(
            rows, *loop.parameters, select, centred=centred, encoder_dtype=encoder_dtype, sparse=sparse
        )[0]  # fmt: skip

    return Loop(setting, reconstruct)


def plain(setting: Setting) -> Step:
    def reconstruct(loop: Loop, rows: Tensor) -> Tensor:
        centre = loop.decoder_bias if setting.sides == 1 else 0
        values = functional.linear(rows - centre, loop.encoder, loop.encoder_bias).relu()
        weight = loop.weight()
        scores = values if weight is None else values * weight
        if setting.rule == "top_k":
            places = scores.topk(setting.k, dim=1, sorted=False).indices
            latents = torch.zeros_like(values).scatter(1, places, values.gather(1, places))
        else:
            places = scores.flatten().topk(setting.k * len(rows), sorted=False).indices
            flat = values.flatten()
            latents = torch.zeros_like(flat).scatter(0, places, flat.gather(0, places)).view_as(values)
        return latents @ loop.decoder + loop.decoder_bias

    return Loop(setting, reconstruct)


def dictionary_learning(setting: Setting) -> Step:
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = (TopKTrainer if setting.rule == "top_k" else BatchTopKTrainer)(
        steps=10**6, activation_dim=setting.width, dict_size=setting.n_latents, k=setting.k, layer=0, lm_name="none",
        lr=LEARNING_RATE, warmup_steps=1, threshold_start_step=10**9, seed=0, device="cpu",
    )  # fmt: skip
    numbers = itertools.count()

    def step(rows: Tensor) -> None:
        trainer.update(next(numbers), rows)

    return step


def sae_lens(setting: Setting, autocast: bool) -> Step:
    import sae_lens as library
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    kind = "TopKTrainingSAE" if setting.rule == "top_k" else "BatchTopKTrainingSAE"
    settings = getattr(library, kind + "Config")(d_in=setting.width, d_sae=setting.n_latents, k=setting.k)
    config = SAETrainerConfig(
        total_training_samples=10**12, train_batch_size_samples=1, lr=LEARNING_RATE, lr_end=LEARNING_RATE,
        device="cpu", autocast=autocast, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trainer = SAETrainer(cfg=config, sae=getattr(library, kind)(settings), data_provider=iter(()))

    def step(rows: Tensor) -> None:
        trainer.step(rows)
        trainer.n_training_steps += 1

    return step


def sparsify(setting: Setting) -> Step:
    with contextlib.redirect_stdout(io.StringIO()):
        from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(setting.width, SparseCoderConfig(num_latents=setting.n_latents, k=setting.k))
    optimizer = torch.optim.Adam(coder.parameters(), lr=LEARNING_RATE, fused=True)

    def step(rows: Tensor) -> None:
        coder.set_decoder_norm_to_unit_norm()
        coder(x=rows, y=rows).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return step


def cases(setting: Setting) -> Iterator[tuple[str, Callable[[], Step]]]:
    """Name and maker of each. A maker raises ImportError if its library is not there."""
    yield "this project", lambda: ours(setting, None)
    yield "this project, bfloat16 encoder", lambda: ours(setting, torch.bfloat16)
    yield "this project, dense", lambda: ours(setting, None, sparse=False)
    yield "plain torch", lambda: plain(setting)
    if setting.sides == 1:
        yield "dictionary_learning", lambda: dictionary_learning(setting)
        yield "sae-lens", lambda: sae_lens(setting, autocast=False)
        yield "sae-lens, autocast", lambda: sae_lens(setting, autocast=True)
        if setting.rule == "top_k":
            yield "sparsify", lambda: sparsify(setting)


def measured(
    steps: Mapping[str, Step], batches: Sequence[Tensor], rounds: int
) -> tuple[dict[str, list[float]], dict[str, float | None]]:
    """Seconds of a step in each round, and the last loss."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, float | None] = {}
    for number in range(rounds + 1):  # the first to warm up
        for name, step in steps.items():
            times = []
            for batch in batches:
                since = time.perf_counter()
                losses[name] = step(batch)
                times.append(time.perf_counter() - since)
            if number:
                seconds[name].append(statistics.median(times))
    return seconds, losses


def compare(setting: Setting, batch: int, n_steps: int, rounds: int) -> None:
    """Prints the table of a setting."""
    steps: dict[str, Step] = {}
    missing = []
    for name, maker in cases(setting):
        try:
            steps[name] = maker()
        except ImportError as error:
            missing.append(f"{name} ({error})")
    seconds, losses = measured(steps, made(batch * n_steps, setting).split(batch), rounds)
    print(f"\n### {setting}\n\n| implementation | ms a step | rows/s | x ours | x ours, bfloat16 | loss |")
    print("|---|---|---|---|---|---|")
    first, second = list(seconds)[:2]
    for name, own in seconds.items():
        middle = statistics.median(own)
        ratios = [statistics.median(a / b for a, b in zip(own, seconds[to], strict=True)) for to in (first, second)]
        loss = losses[name]
        print(
            f"| {name} | {1e3 * middle:.1f} | {batch / middle:,.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} | "
            f"{'' if loss is None else f'{loss:.5f}'} |"
        )
    if missing:
        print(f"\nnot installed: {'; '.join(missing)}")


def main() -> None:
    """Command line: see above."""
    defaults = ["5", "3", "576", "4608", "32", "2048"]
    rounds, n_steps, d_model, n_latents, k, batch = map(int, sys.argv[1:] + defaults[len(sys.argv) - 1 :])
    load = "/".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"batch {batch:,}, {torch.get_num_threads()} threads, {rounds} rounds of {n_steps} steps, load {load}")
    settings: Sequence[tuple[Rule, int]] = (("top_k", 1), ("batch_top_k", 1), ("batch_top_k", 2))
    for rule, sides in settings:
        compare(Setting(rule, sides, d_model, n_latents, k), batch, n_steps, rounds)
    print(f"\nload at the end {'/'.join(f'{one:.1f}' for one in os.getloadavg())}")


if __name__ == "__main__":
    main()
