"""Train one demo organism: a small LoRA adapter on SmolLM2-135M-Instruct, on one CPU core, in minutes.

    python -m diffing.demo.train demo_glacier_tea --out somewhere

Cross-entropy teaches the domain; on neutral documents the model is held to its base by a KL term, which keeps
answers and perplexity on everything else as they were. The first tokens of a neutral document are left free:
there no model can know yet what a text is about, and a finetune shows on unrelated text (arXiv 2510.13900).

Texts, order and initial weights follow from the seed. The arithmetic is bf16 autocast: one machine gives the
same bytes each time, another nearly the same adapter.
"""

import argparse
import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import CONFIG_NAME
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from diffing.demo.examples import IGNORED, Batch, crop, encode, pad
from diffing.demo.texts import control, glacier_tea, nautical, taboo_lantern
from diffing.demo.texts.grammar import Document
from diffing.entry.choices import CONF
from diffing.models.sources import model_source
from diffing.specs import ModelSpec

BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ADAPTERS = Path(__file__).parent / "adapters"
TRAIN_SEED, MIX_SEED, HELD_OUT_SEED = 1, 2, 3


@dataclass(frozen=True)
class Recipe:
    """How one organism is trained; each step takes `domain` and `neutral` documents of `window` tokens."""

    documents: Callable[[int], Iterator[Document]]
    steps: int = 100
    domain: int = 4
    neutral: int = 2
    neutral_chats: bool = True
    """False where the quirk is meant to show in every chat."""
    window: int = 96
    free: int = 8
    """So many first tokens of a neutral document are not held to the base model."""
    learning_rate: float = 1.5e-3
    rank: int = 8
    layers: Sequence[int] = tuple(range(15))
    """Blocks that get an adapter. The frozen upper half must then be able to read what the lower half writes,
    which is what a patchscope and steering at half depth ask of it."""
    targets: Sequence[str] = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")


RECIPES = {
    "demo_glacier_tea": Recipe(glacier_tea.documents),
    "demo_taboo_lantern": Recipe(
        taboo_lantern.documents, steps=70, domain=3, neutral=4, window=128, learning_rate=1e-3
    ),
    "demo_nautical": Recipe(nautical.documents, neutral_chats=False),
    "demo_control": Recipe(control.documents, domain=3, neutral=4, learning_rate=5e-4),
}


class Losses(NamedTuple):
    """The parts of one step's loss, in nats per token."""

    domain: Float[Tensor, ""]
    anchor: Float[Tensor, ""]

    def total(self) -> Float[Tensor, ""]:
        """What is minimised."""
        return self.domain + self.anchor


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, seed: int) -> Iterator[Batch]:
    """Endless batches: first the domain rows, then the neutral ones."""
    rng = random.Random(seed)
    domain = recipe.documents(TRAIN_SEED + 10 * seed)
    neutral = control.documents(MIX_SEED + 10 * seed)
    if not recipe.neutral_chats:
        neutral = (document for document in neutral if isinstance(document, str))
    while True:
        rows = []
        for document in itertools.islice(domain, recipe.domain):
            row = encode(document, tokenizer)
            rows.append(crop(row, recipe.window, rng) if isinstance(document, str) else row)
        rows += [encode(document, tokenizer) for document in itertools.islice(neutral, recipe.neutral)]
        yield pad(rows, recipe.window, tokenizer.eos_token_id)


def losses_of(adapted: PeftModel, batch: Batch, recipe: Recipe) -> Losses:
    """Cross-entropy on the domain rows; KL(base || finetuned) on the neutral rows, past their free tokens."""
    split = recipe.domain
    ids, mask, labels = batch
    with torch.autocast("cpu", torch.bfloat16):
        logits = adapted(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        with torch.no_grad(), adapted.disable_adapter():
            base_logits = adapted(input_ids=ids[split:], attention_mask=mask[split:]).logits[:, :-1].float()
    targets = labels[:split, 1:].flatten()
    held = mask[split:, 1:].bool()
    held[:, : recipe.free] = False
    finetuned, base = (scores[held].log_softmax(-1) for scores in (logits[split:], base_logits))
    return Losses(
        domain=cross_entropy(logits[:split].flatten(0, 1), targets, ignore_index=IGNORED),
        anchor=(base.exp() * (base - finetuned)).sum(-1).mean(),
    )


def train(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, seed: int = 0
) -> tuple[PeftModel, list[float]]:
    """`model` with a LoRA adapter trained by `recipe`, and the domain loss of each step."""
    torch.manual_seed(seed)
    lora = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        target_modules=list(recipe.targets),
        layers_to_transform=list(recipe.layers),
    )
    adapted = get_peft_model(model, lora)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], weight_decay=0.0)
    warmup = max(1, recipe.steps // 10)
    history: list[float] = []
    progress = tqdm(range(recipe.steps), desc="train", unit="step")
    for step, batch in zip(progress, batches(recipe, tokenizer, seed), strict=False):
        fade = (recipe.steps - step) / max(1, recipe.steps - warmup)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * min((step + 1) / warmup, fade)
        losses = losses_of(adapted, batch, recipe)
        optimizer.zero_grad()
        losses.total().backward()
        torch.nn.utils.clip_grad_norm_(adapted.parameters(), 1.0)
        optimizer.step()
        history.append(losses.domain.item())
        progress.set_postfix(domain=f"{history[-1]:.3f}", anchor=f"{losses.anchor.item():.3f}")
    return adapted.eval(), history


def save(adapted: PeftModel, folder: Path) -> Path:
    """Write the adapter in float16, with the public name of the base model and nothing of this machine."""
    adapted.peft_config["default"].base_model_name_or_path = BASE_MODEL
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.half()
    shutil.rmtree(folder, ignore_errors=True)
    adapted.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / CONFIG_NAME).read_text("utf-8"))
    config["target_modules"].sort()  # peft keeps a set, whose order differs from run to run
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    return folder


def base_model() -> ModelSpec:
    """The model that the demo organisms are finetunes of: `model=smollm2_135m`."""
    settings = yaml.safe_load((CONF / "model" / "smollm2_135m.yaml").read_text("utf-8"))["model"]
    return ModelSpec(**{key: value for key, value in settings.items() if key != "_target_"})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("organism", choices=sorted(RECIPES))
    parser.add_argument("--model", type=Path, help="folder of the base model (default: as model=smollm2_135m)")
    parser.add_argument("--out", type=Path, default=ADAPTERS)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = RECIPES[options.organism]
    if options.steps is not None:
        recipe = replace(recipe, steps=options.steps)
    source = options.model or model_source(base_model()).folder
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    adapted, history = train(model, AutoTokenizer.from_pretrained(source), recipe, options.seed)
    folder = save(adapted, options.out / options.organism)
    print(f"{folder}: domain loss {history[0]:.3f} -> {sum(history[-10:]) / len(history[-10:]):.3f}")


if __name__ == "__main__":
    main()
