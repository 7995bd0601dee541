"""Amplified adapters as ordinary PEFT folders: any loader of LoRA adapters takes them, without this package.

One adapter keeps its rank, alpha and A factors, and its B factors are multiplied. Several become one: ranks are put
side by side, padded with zeros to the same rank everywhere, and scales go into B, so alpha equals the rank.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffing.errors import InvalidSetting
from diffing.models.amplification.parts import OWN, Part, between
from diffing.models.amplification.resolving import Resolution

RECORD = "amplification.json"
"""Beside the adapter: what was amplified, as config and as weights. Loaders leave it alone."""


def export(resolution: Resolution, base: nn.Module, folders: Mapping[str, Path], target: Path) -> None:
    """Writes the amplified adapter. `folders` holds those of the adapters by the names of their parts.

    Raises InvalidSetting for what is no LoRA adapter: logits, and DoRA at other weights than 1.
    """
    if resolution.amplification.logits is not None:
        raise InvalidSetting(f"amplification '{resolution.amplification.name}' is of logits: no adapter does that")
    _refuse_dora(resolution, folders)
    target.mkdir(parents=True, exist_ok=True)
    if len(folders) == 1:
        tensors = _scaled(resolution.weights, base, folders[""])
        shutil.copyfile(folders[""] / "adapter_config.json", target / "adapter_config.json")
    else:
        tensors, config = _side_by_side(resolution.weights, folders)
        (target / "adapter_config.json").write_text(json.dumps(config, indent=1), "utf-8")
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    record = {"amplification": resolution.amplification.as_mapping(), "weights": resolution.rows()}
    (target / RECORD).write_text(json.dumps(record, indent=1), "utf-8")


def _stored(folder: Path) -> dict[str, Tensor]:
    from peft.utils import load_peft_weights

    return load_peft_weights(str(folder), device="cpu")


def _config(folder: Path) -> dict:
    return json.loads((folder / "adapter_config.json").read_text("utf-8"))


def _refuse_dora(resolution: Resolution, folders: Mapping[str, Path]) -> None:
    changed = resolution.changed()
    for adapter, folder in folders.items():
        if _config(folder).get("use_dora") and (part := next((p for p in changed if p.adapter == adapter), None)):
            raise InvalidSetting(
                f"{part.name}: a DoRA at weight {changed[part]:g} is no adapter of its rank, so it cannot be exported; "
                "it can be run in place"
            )


def _scaled(weights: Mapping[Part, float], base: nn.Module, folder: Path) -> dict[str, Tensor]:
    by_name = {part.name: weight for part, weight in weights.items()}
    originals = {_base_name(name): value for name, value in base.named_parameters()}
    found = {}
    for key, value in _stored(folder).items():
        name = key.removeprefix("base_model.model.")
        module, low_rank, factor = name.partition(".lora_")
        weight = by_name.get(module if low_rank else name, 1.0)
        if low_rank and factor.startswith(("B", "embedding_B")) and weight != 1.0:
            value = (weight * value.float()).to(value.dtype)
        elif name in by_name and not low_rank and weight != 1.0:
            value = between(originals[name].cpu(), value, weight)
        found[key] = value.contiguous()
    return found


def _base_name(name: str) -> str:
    """Of a parameter, without what PEFT puts around its module."""
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def _side_by_side(weights: Mapping[Part, float], folders: Mapping[str, Path]) -> tuple[dict[str, Tensor], dict]:
    configs = {adapter: _config(folder) for adapter, folder in folders.items()}
    factors: dict[str, list[tuple[Tensor, Tensor, bool]]] = {}
    for adapter, folder in folders.items():
        stored = _stored(folder)
        scales = _scales(configs[adapter], stored)
        for part, weight in weights.items():
            if part.adapter != adapter:
                continue
            prefix = f"base_model.model.{part.name}.lora_"
            of_embedding = f"{prefix}embedding_A" in stored
            names = ("embedding_A", "embedding_B") if of_embedding else ("A.weight", "B.weight")
            if any(prefix + name not in stored for name in names) or f"{prefix}B.bias" in stored:
                raise InvalidSetting(
                    f"{part.name} of adapter {adapter or OWN}: only plain LoRA goes with other adapters"
                )
            down, up = (stored[prefix + name] for name in names)
            up = (weight * scales[part.name] * up.float()).to(up.dtype)
            factors.setdefault(part.name, []).append((down, up, of_embedding))
    rank = max(sum(len(down) for down, _, _ in each) for each in factors.values())
    tensors = {}
    for name, each in factors.items():
        down, up = torch.cat([pair[0] for pair in each]), torch.cat([pair[1] for pair in each], dim=1)
        missing, prefix = rank - len(down), f"base_model.model.{name}.lora_"
        leaf = ("embedding_A", "embedding_B") if each[0][2] else ("A.weight", "B.weight")
        tensors[prefix + leaf[0]] = torch.nn.functional.pad(down, (0, 0, 0, missing))
        tensors[prefix + leaf[1]] = torch.nn.functional.pad(up, (0, missing))
    plain = {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    plain |= {"layers_to_transform": None, "layers_pattern": None, "exclude_modules": None}
    return tensors, configs[""] | plain | {"target_modules": sorted(factors)}


def _scales(config: Mapping, stored: Mapping[str, Tensor]) -> dict[str, float]:
    """What PEFT multiplies the product of the factors with, by module."""
    from peft.utils.other import get_pattern_key

    alphas = config.get("alpha_pattern") or {}
    found = {}
    for key, value in stored.items():
        module, low_rank, factor = key.removeprefix("base_model.model.").partition(".lora_")
        if not low_rank or not factor.startswith(("A", "embedding_A")):
            continue
        alpha = alphas.get(get_pattern_key(list(alphas), module), config["lora_alpha"])
        rank = len(value)
        found[module] = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return found
