"""What collecting activations costs beyond the forward passes, against a plain loop, and in memory.

    python benchmarks/collect.py [--documents 64] [--rounds 3] [--dtype float32] [--skip-memory]

SmolLM2-135M-Instruct with the demo_glacier_tea adapter, on pieces of Python's own documentation with the lengths of
chats. Everything takes turns within a round; ratios are medians over rounds.

1. collecting two layers, against nothing but the two forward passes of the same batches, stopped at the same layer;
2. collecting the layer at half depth, against a plain loop: batches of 8 in the order of the corpus, padded, all
   hidden states returned;
3. peak memory of a process that collects a corpus of so many tokens, and four times as many.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import torch

from benchmarks.peak import own_peak_mib
from diffing.activations.collect import collect
from diffing.activations.plan import kept_rows, length_batches, rows_per_shard, split
from diffing.activations.tokens import Tokens, tokenise, tokenizer_digest
from diffing.axes import Side
from diffing.demo.train import base_model
from diffing.models.pair import ModelPair
from diffing.models.sites import residuals
from diffing.models.sources import pin
from diffing.specs import CacheSpec, CorpusSpec, PairSpec, TokensSpec, VariantSpec
from diffing.text import corpus as corpora
from diffing.text.embedded import python_docs
from diffing.text.windows import TokenBatch, pad

ADAPTER = VariantSpec("lora", "package://diffing.demo/adapters/demo_glacier_tea")
BATCH_TOKENS, SHARD_MIB, MEMORY_SHARD_MIB, MEMORY_TOKENS = 2048, 256, 8, 40_000
SMALL_MIB = 4
"""So that there are several shards, and all but the last are written while the next is collected."""


def lengths() -> Iterator[int]:
    """Words per document: log-normal, median 75, 6 to 380, as in chats."""
    draws = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    return cycle(int(length) for length in (4.3 + 0.8 * draws).exp().clamp(6, 380))


def prepared(folder: Path, pair: ModelPair, documents: int, layers: Sequence[int]) -> tuple[Tokens, dict]:
    """The tokens of so many documents, and the specs of both stores."""
    words = cycle(word for row in python_docs() for word in str(row["text"]).split())
    text = "\n\n".join(" ".join(islice(words, length)) for length in islice(lengths(), documents))
    (folder / "corpus.txt").write_text(text, "utf-8")
    spec = corpora.pin(CorpusSpec("docs", "file", str(folder / "corpus.txt"), shuffle_seed=None))
    tokens = TokensSpec(spec, tokenizer_digest(pair.tokenizer))
    base = CacheSpec(tokens, pair.spec.base, None, layers)
    made = tokenise(corpora.Corpus(spec), pair.tokenizer, tokens, folder)
    return made, {Side.BASE: base, Side.FINETUNED: replace(base, finetuned=pair.spec.finetuned)}


def same_batches(tokens: Tokens, spec: CacheSpec, d_model: int) -> list[TokenBatch]:
    """What collecting runs, with shards of SMALL_MIB."""
    batches = []
    rows = rows_per_shard(SMALL_MIB, len(spec.layers) * d_model * 2)
    for shard in split(kept_rows(tokens, spec), rows):
        ids = [tokens.document(number).tolist() for number in shard]
        groups = length_batches([len(sequence) for sequence in ids], BATCH_TOKENS)
        batches += [pad([ids[number] for number in group], 0, "right") for group in groups]
    return batches


def bare_forwards(pair: ModelPair, batches: Sequence[TokenBatch], layers: Sequence[int]) -> None:
    for side in Side:
        with pair.using(side) as model:
            for batch in batches:
                residuals(model, batch, layers)


@torch.no_grad()
def plain_loop(pair: ModelPair, tokens: Tokens, layer: int) -> None:
    """Keeps one layer of all real tokens, as bfloat16."""
    for side in Side:
        kept = []
        with pair.using(side) as model:
            for start in range(0, tokens.n_documents, 8):
                chosen = range(start, min(start + 8, tokens.n_documents))
                batch = pad([tokens.document(number).tolist() for number in chosen], 0, "right")
                out = model(batch.ids, attention_mask=batch.mask.long(), output_hidden_states=True)
                kept.append(out.hidden_states[layer + 1][batch.mask].bfloat16())
        torch.cat(kept)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speed(options: argparse.Namespace, folder: Path) -> None:
    """Figures 1 and 2."""
    base = replace(base_model(), dtype=options.dtype)
    pair = ModelPair(pin(PairSpec(base, ADAPTER, "demo_glacier_tea")), "cpu")
    half = pair.layer_at(0.5)
    tokens, two = prepared(folder, pair, options.documents, (half // 2, half))
    one = {side: replace(spec, layers=(half,)) for side, spec in two.items()}
    batches = same_batches(tokens, two[Side.BASE], pair.d_model)

    def collected(specs: dict[Side, CacheSpec], shard_mib: int) -> None:
        root = folder / "collected"
        collect(pair, tokens, specs, root, batch_tokens=BATCH_TOKENS, shard_mib=shard_mib)
        shutil.rmtree(root)

    bare_forwards(pair, batches[:1], (half,))  # loads the weights
    contenders = {
        "collect, two layers": lambda: collected(two, SMALL_MIB),
        "bare forwards": lambda: bare_forwards(pair, batches, two[Side.BASE].layers),
        "collect, one layer": lambda: collected(one, SHARD_MIB),
        "plain loop": lambda: plain_loop(pair, tokens, half),
    }
    rounds = []
    for number in range(options.rounds):
        rounds.append({name: seconds(work) for name, work in contenders.items()})
        print(f"round {number + 1}:", *(f"{name} {took:.1f} s;" for name, took in rounds[-1].items()), flush=True)
    size = f"{tokens.n_tokens} tokens in {tokens.n_documents} documents"
    print(f"{size}, {options.dtype}, {torch.get_num_threads()} threads")
    print("| | tokens/s (both sides) |\n|---|---|")
    for name in contenders:
        print(f"| {name} | {tokens.n_tokens / statistics.median(took[name] for took in rounds):.0f} |")
    cost = [took["bare forwards"] / took["collect, two layers"] for took in rounds]
    gain = [took["plain loop"] / took["collect, one layer"] for took in rounds]
    print(f"\nrate of collecting over that of the bare forwards: {_spread(cost)} (expected: 0.90 or more)")
    print(f"rate of collecting over that of the plain loop: {_spread(gain)} (expected: 4 or more)")


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds)"


def peak_mib(times: int) -> float:
    """Of a fresh process that collects `times` x MEMORY_TOKENS tokens."""
    command = [sys.executable, __file__, "--peak", str(times)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def collect_first_layer(times: int, folder: Path) -> None:
    """The cheapest layer, so that a large corpus takes little time."""
    pair = ModelPair(pin(PairSpec(base_model(), ADAPTER, "demo_glacier_tea")), "cpu")
    mean = sum(islice(lengths(), 10_000)) / 10_000 * 1.3
    tokens, specs = prepared(folder, pair, round(times * MEMORY_TOKENS / mean), (0,))
    collect(pair, tokens, specs, folder, batch_tokens=BATCH_TOKENS, shard_mib=MEMORY_SHARD_MIB)
    print(tokens.n_tokens, own_peak_mib())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--skip-speed", action="store_true")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.peak:
            collect_first_layer(options.peak, Path(folder))
            return
        if not options.skip_speed:
            speed(options, Path(folder))
    if not options.skip_memory:
        once, four = peak_mib(1), peak_mib(4)
        print(f"\npeak memory: {once:.0f} MiB for {MEMORY_TOKENS} tokens, {four:.0f} MiB for four times as many")


if __name__ == "__main__":
    main()
