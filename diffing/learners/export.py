"""Writes a sparse autoencoder as a folder that SAELens or dictionary_learning loads.

    python -m diffing.learners.export layer_14 exported --format sae_lens

What is loaded there takes raw rows (of the difference finetuned - base, for an autoencoder of it) and gives the same
latent values and the same reconstructions of raw rows: our centring and scaling are folded into the weights. Neither
package has a place to say that its input is a difference of two models, so no hook is named in the config: it would be
put on the activations of one model. Which latents are active is told as the format can:

    ours           SAELens 6       dictionary_learning 0.1
    batch_top_k    jumprelu        BatchTopKSAE            value > threshold, on both strictly
    top_k          topk            AutoEncoderTopK
    relu           standard        AutoEncoderNew          AutoEncoder would be rescaled when it is loaded
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from diffing.errors import DiffingError, InvalidSetting, MissingInput, StorageFailed
from diffing.learners.base import Learner, load_learner
from diffing.learners.sae import SAE

SAE_LENS_VERSION = "6.54.12"
"""Whose config this is; from 6.0 on it is read as it stands."""


@dataclass(frozen=True, eq=False)
class Folded:
    """f = encoder (x - bias) + encoder_bias where active; x^ = f decoder + bias; x is a raw row."""

    encoder: Float[Tensor, "latent d_model"]
    encoder_bias: Float[Tensor, " latent"]
    decoder: Float[Tensor, "latent d_model"]
    bias: Float[Tensor, " d_model"]
    threshold: float
    """Never below 0."""

    @classmethod
    def of(cls, sae: SAE) -> "Folded":
        """On the CPU, in float32."""
        stored = {name: value.detach().cpu().double() for name, value in sae.state_dict().items()}
        scale, mean = stored["scale"], stored["mean"][0]
        return cls(
            (stored["encoder"] * scale).float(),
            stored["encoder_bias"].float(),
            (stored["decoder"] / scale).float(),
            (stored["decoder_bias"] / scale + mean).float(),
            max(0.0, float(stored["threshold"])),
        )


def export(learner: Learner, target: Path, format: str) -> None:
    """Writes the folder `target`. Raises InvalidSetting for a learner that the format cannot hold."""
    if format not in FORMATS:
        raise InvalidSetting(f"format={format}; expected one of {', '.join(FORMATS)}")
    if not isinstance(learner, SAE):
        raise InvalidSetting(
            f"a {learner.recipe.kind} cannot be written as {format}, which knows autoencoders of one stream: "
            "give a learner of sae_difference"
        )
    try:
        target.mkdir(parents=True, exist_ok=True)
        FORMATS[format](learner, target)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise StorageFailed(f"cannot write the {format} folder {target}: {error}") from error


def _sae_lens(sae: SAE, target: Path) -> None:
    """cfg.json and sae_weights.safetensors."""
    folded, sparsity = Folded.of(sae), sae.sparsity
    weights = {
        "W_enc": folded.encoder.T.contiguous(),
        "b_enc": folded.encoder_bias,
        "W_dec": folded.decoder,
        "b_dec": folded.bias,
    }
    config: dict[str, object] = {
        "d_in": sae.recipe.d_model,
        "d_sae": sparsity.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": SAE_LENS_VERSION, **_origin(sae)},
    }
    if sparsity.activation == "batch_top_k":
        config["architecture"] = "jumprelu"
        weights["threshold"] = torch.full((sparsity.n_latents,), folded.threshold)
    elif sparsity.activation == "top_k":
        config |= {"architecture": "topk", "k": sparsity.k, "rescale_acts_by_decoder_norm": False}
    else:
        config["architecture"] = "standard"
    save_file(weights, target / "sae_weights.safetensors")
    _write(config, target / "cfg.json")


def _dictionary_learning(sae: SAE, target: Path) -> None:
    """config.json and ae.pt."""
    folded, sparsity = Folded.of(sae), sae.sparsity
    weights = {
        "encoder.weight": folded.encoder,
        "encoder.bias": folded.encoder_bias,
        "decoder.weight": folded.decoder.T.contiguous(),
    }
    if sparsity.activation == "relu":
        kind = "AutoEncoderNew"
        shift = folded.encoder.double() @ folded.bias.double()
        weights["encoder.bias"] = (folded.encoder_bias.double() - shift).float()
        weights["decoder.bias"] = folded.bias
    else:
        kind = "BatchTopKSAE" if sparsity.activation == "batch_top_k" else "AutoEncoderTopK"
        weights["b_dec"] = folded.bias
        weights["k"] = torch.tensor(sparsity.k, dtype=torch.int32)
        weights["threshold"] = torch.tensor(folded.threshold if sparsity.activation == "batch_top_k" else -1.0)
    trainer = {"dict_class": kind, "activation_dim": sae.recipe.d_model, "dict_size": sparsity.n_latents}
    torch.save(weights, target / "ae.pt")
    _write({"trainer": {**trainer, "k": sparsity.k, **_origin(sae)}}, target / "config.json")


def _origin(sae: SAE) -> dict[str, object]:
    """What the rows are, in words and numbers that neither package acts on."""
    recipe = sae.recipe
    about = f"raw {recipe.stream} rows (difference: finetuned - base) of the residual stream after block {recipe.layer}"
    return {"input": about, "layer": recipe.layer, "pair": recipe.pair, "recipe": recipe.digest}


def _write(config: Mapping[str, object], path: Path) -> None:
    """Last of all, as a folder without it is not loaded."""
    path.write_text(json.dumps(config, indent=1), "utf-8")


FORMATS: Mapping[str, Callable[[SAE, Path], None]] = {
    "sae_lens": _sae_lens,
    "dictionary_learning": _dictionary_learning,
}


def _opened(folder: Path) -> Learner:
    """The learner in a folder; names those below it, if there are only such."""
    below = sorted(path.parent.name for path in folder.glob("*/recipe.json"))
    if below and not (folder / "recipe.json").is_file():
        raise MissingInput(f"{folder} holds several learners; give one of {', '.join(str(folder / n) for n in below)}")
    return load_learner(folder)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("learner", type=Path, help="folder of a learner, as `python -m trackers get` fetches it")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--format", choices=FORMATS, default="sae_lens")
    given = parser.parse_args(arguments)
    try:
        export(_opened(given.learner), given.target, given.format)
    except DiffingError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
