"""How small a planted difference each method finds: a curve over the length of what is added to a real stream.

    python benchmarks/planted_detection.py [--tokens 16000] [--alphas 0 0.02 0.05 0.1 0.3]

The finetuned side is the stream of SmolLM2-135M-Instruct at half depth, on Python's own documentation, plus alpha times
a random direction at a hundredth of the tokens. Alpha is in units of the stream's length (the median over rows; a few
are 100 times as long). There are two backgrounds. "Noise" adds independent noise of 0.1 units to every row, in which
the planted direction is the only thing to find. "Finetune" adds what the demo_control adapter changed there, which is
far from nothing and has directions of its own. Both sides are stored in bfloat16.

All columns are |cos| to the planted direction. "First" is the answer that a method gives unasked: the mean difference,
the first component of PCA, and the latent of a dictionary that adds most to the difference in mean square; "random" is
any direction. "Best of 256" is the closest of 256 components, latents (with its place by size, from 1) or random
directions: what there is to be found by looking at all. AUROC is how well the activation of the SAE's closest latent
tells triggers from other tokens. The SAE of the difference is TopK with k=2, the crosscoder BatchTopK with k=8.
OMP_NUM_THREADS sets the threads of the model; the dictionaries are too small for more than one.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diffing.activations.datamodule import ActivationDataModule
from diffing.activations.store import ActivationCache
from diffing.axes import Side, Stream
from diffing.demo.train import base_model
from diffing.learners.crosscoder import Crosscoder
from diffing.learners.dictionary import Sparsity
from diffing.learners.fitting import fit
from diffing.learners.pca import PCAFit
from diffing.learners.sae import SAE
from diffing.learners.schedules import Training
from diffing.learners.training import DictionaryFit, train
from diffing.models.pair import ModelPair
from diffing.models.sources import pin
from diffing.specs import PairSpec, VariantSpec
from tests.learners.organism import RealText, auroc, largest_first, random_directions, read

CONTROL = VariantSpec("lora", "package://diffing.demo/adapters/demo_control")
NOISE, N_DIRECTIONS, BATCH = 0.1, 256, 256
SETTINGS = Training(batch_size=BATCH, epochs=10**6, max_steps=800, lr=5e-3, warmup_steps=80)


class Found(NamedTuple):
    """What a method found, its first answer first."""

    name: str
    directions: Float[Tensor, "latent d_model"]
    values: Float[Tensor, "token latent"] | None = None
    """Of a dictionary's latents in every row."""


def methods(cache: ActivationCache, layer: int) -> list[Found]:
    """Every method on one cache. Random directions come last."""
    components = PCAFit.of([cache], layer, n_components=N_DIRECTIONS)
    fit(components, ActivationDataModule([cache], layer, 2048))
    found = [
        Found("mean difference", cache.moments(Stream.DIFFERENCE, layer).mean.float()[None]),
        Found("PCA", components.solve().components),
    ]
    sparse, batch_sparse = Sparsity(N_DIRECTIONS, 2, "top_k"), Sparsity(N_DIRECTIONS, 8, "batch_top_k")
    for name, kind, sparsity in (("SAE", SAE, sparse), ("crosscoder", Crosscoder, batch_sparse)):
        fitting = DictionaryFit.of(kind, [cache], layer, sparsity, SETTINGS)
        values, directions = largest_first(train(fitting, [cache]), cache)
        found.append(Found(name, directions, values))
    return [*found, Found("random", random_directions(N_DIRECTIONS + 1, cache.d_model)[1:])]


def row(text: RealText, cache: ActivationCache, direction: Tensor) -> str:
    """The columns of a cache."""
    first, best, area = [], [], ""
    for method in methods(cache, text.layer):
        cosines = torch.cosine_similarity(method.directions, direction[None]).abs()
        first.append(f"{cosines[0]:.2f}")
        if len(cosines) > 1:
            place = int(cosines.argmax())
            ranked = method.name != "random"
            best.append(f"{cosines[place]:.2f}" + f" (at {place + 1})" * ranked)
            if method.name == "SAE":
                assert method.values is not None
                area = f"{auroc(method.values[:, place], text.triggers()):.3f}"
    return " | ".join([*first, *best, area])


def table(text: RealText, background: Tensor, alphas: Sequence[float]) -> None:
    """Prints one."""
    names = ["mean difference", "PCA", "SAE", "crosscoder", "random"]
    heads = [f"{name}, first" for name in names] + [f"{name}, best" for name in names[1:]] + ["AUROC of the SAE's best"]
    print(f"| alpha | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}")
    direction = random_directions(1, text.rows[0].shape[1])[0]
    for alpha in alphas:
        with tempfile.TemporaryDirectory() as folder:
            cache = text.planted(Path(folder), alpha, direction, background)
            print(f"| {alpha:g} | {row(text, cache, direction)} |", flush=True)


def main() -> None:
    """Command line: see above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16_000)
    parser.add_argument("--alphas", type=float, nargs="+", default=[0, 0.02, 0.05, 0.1, 0.3])
    args = parser.parse_args()
    pair = ModelPair(pin(PairSpec(base_model(), CONTROL, "demo_control")), device="cpu")
    text = read(pair, pair.layer_at(0.5), args.tokens, tuple(Side))
    torch.set_num_threads(1)
    changed = text.rows[1] - text.rows[0]
    share = text.triggers().float().mean()
    print(
        f"{len(text.ids):,} rows of layer {text.layer}, 1 unit = {text.unit:.0f}, triggers are {share:.1%} of the rows"
    )
    print(f"\nBackground: noise of {NOISE} units per row\n")
    table(text, text.noise(NOISE), args.alphas)
    length = changed.norm(dim=1).median() / text.unit
    print(f"\nBackground: what demo_control changed, of {length:.2f} units per row (median)\n")
    table(text, changed, args.alphas)


if __name__ == "__main__":
    main()
