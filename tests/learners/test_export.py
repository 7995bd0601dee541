"""Autoencoders in the formats of other packages: the folded weights, and what those packages make of them.

The tests with a package's name need it (`pip install .[export]`) and are skipped without.
"""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffing.errors import InvalidSetting, StorageFailed
from diffing.learners.crosscoder import Crosscoder
from diffing.learners.dictionary import Sparsity
from diffing.learners.export import FORMATS, Folded, export, main
from diffing.learners.sae import SAE
from tests.learners.planted import at_random, recipe_of

D_MODEL, LATENTS, K = 32, 40, 5
ACTIVATIONS = ("batch_top_k", "top_k", "relu")


def sae_of(activation: str, threshold: float = 0.4) -> SAE:
    """Weights without meaning, the mean and scale of rows that are far from normal."""
    made = at_random(SAE, recipe_of(SAE, Sparsity(LATENTS, K, activation), D_MODEL), threshold)
    assert isinstance(made, SAE)
    made.mean.mul_(20)
    made.scale.fill_(0.3)
    made.encoder.mul_(torch.linspace(0.5, 2, LATENTS)[:, None])
    return made


def raw_rows(sae: SAE, n: int = 200) -> Tensor:
    """None of which has a value so near the threshold that rounding decides."""
    random = torch.randn(10 * n, D_MODEL, generator=torch.Generator().manual_seed(3))
    rows = sae.mean + random / sae.scale
    near = (sae.pre_activations(sae.normalise(rows)) - max(0.0, float(sae.threshold))).abs().amin(1) < 1e-4
    return rows[~near][:n]


@pytest.fixture(params=ACTIVATIONS)
def sae(request: pytest.FixtureRequest) -> SAE:
    return sae_of(request.param)


def close(found: Tensor, expected: Tensor) -> None:
    """To 1e-5 of the size of what is compared."""
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())
    assert torch.equal(found != 0, expected != 0)


def test_folded_weights_are_those_of_the_closed_form(sae: SAE) -> None:
    folded, s = Folded.of(sae), 0.3
    torch.testing.assert_close(folded.encoder, s * sae.encoder)
    torch.testing.assert_close(folded.encoder_bias, sae.encoder_bias)
    torch.testing.assert_close(folded.decoder, sae.decoder / s)
    torch.testing.assert_close(folded.bias, sae.decoder_bias / s + sae.mean[0])
    rows = raw_rows(sae)
    pre = (rows - folded.bias) @ folded.encoder.T + folded.encoder_bias
    expected = sae.pre_activations(sae.normalise(rows))
    torch.testing.assert_close(pre, expected, rtol=1e-5, atol=1e-4)
    latents = sae.encode(rows)
    close(latents @ folded.decoder + folded.bias, sae.decode(latents))


def test_a_threshold_below_zero_keeps_what_a_relu_keeps() -> None:
    assert Folded.of(sae_of("batch_top_k", threshold=-1.0)).threshold == 0


def test_sae_lens_finds_the_names_and_shapes_that_it_knows(tmp_path: Path, sae: SAE) -> None:
    export(sae, tmp_path / "new" / "folder", "sae_lens")
    weights = load_file(tmp_path / "new" / "folder" / "sae_weights.safetensors")
    config = json.loads((tmp_path / "new" / "folder" / "cfg.json").read_text())
    shapes = {"W_enc": (D_MODEL, LATENTS), "b_enc": (LATENTS,), "W_dec": (LATENTS, D_MODEL), "b_dec": (D_MODEL,)}
    particular: dict[str, Any] = {"architecture": "standard"}
    if sae.sparsity.activation == "batch_top_k":
        shapes["threshold"] = (LATENTS,)
        particular = {"architecture": "jumprelu"}
        assert torch.equal(weights["threshold"], torch.full((LATENTS,), float(sae.threshold)))
    elif sae.sparsity.activation == "top_k":
        particular = {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": False}
    assert {name: tuple(value.shape) for name, value in weights.items()} == shapes
    assert {value.dtype for value in weights.values()} == {torch.float32}
    metadata = config.pop("metadata")
    assert config == particular | {
        "d_in": D_MODEL, "d_sae": LATENTS, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none",
    }  # fmt: skip
    assert metadata["sae_lens_version"] >= "6"
    assert "difference" in metadata["input"]
    assert metadata["recipe"] == sae.recipe.digest
    assert "hook_name" not in metadata, "it would be put on one model's activations"


def test_dictionary_learning_finds_the_names_and_shapes_that_it_knows(tmp_path: Path, sae: SAE) -> None:
    export(sae, tmp_path, "dictionary_learning")
    weights = torch.load(tmp_path / "ae.pt")
    trainer = json.loads((tmp_path / "config.json").read_text())["trainer"]
    shapes = {"encoder.weight": (LATENTS, D_MODEL), "encoder.bias": (LATENTS,), "decoder.weight": (D_MODEL, LATENTS)}
    if sae.sparsity.activation == "relu":
        shapes["decoder.bias"] = (D_MODEL,)
    else:
        shapes |= {"b_dec": (D_MODEL,), "k": (), "threshold": ()}
        assert int(weights["k"]) == trainer["k"] == K
    assert {name: tuple(value.shape) for name, value in weights.items()} == shapes
    kinds = {"batch_top_k": "BatchTopKSAE", "top_k": "AutoEncoderTopK", "relu": "AutoEncoderNew"}
    assert trainer["dict_class"] == kinds[sae.sparsity.activation]
    if sae.sparsity.activation == "batch_top_k":
        assert float(weights["threshold"]) == float(sae.threshold)


def agrees(encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor], sae: SAE) -> None:
    """On raw rows. Values at the threshold and above zero but below it are off on both sides."""
    rows = raw_rows(sae)
    with torch.no_grad():
        ours, theirs = sae.encode(rows), encode(rows)
        close(theirs, ours)
        close(decode(theirs), sae.decode(ours))
    active = (ours > 0).sum(1).float().mean()
    assert 1 < float(active) < LATENTS - 1, "some are on and some are off"


def peer(name: str) -> ModuleType:
    pytest.importorskip(name.split(".")[0])
    return importlib.import_module(name)


def test_sae_lens_gives_the_same_values_and_reconstructions(tmp_path: Path, sae: SAE) -> None:
    loaded = peer("sae_lens")
    export(sae, tmp_path, "sae_lens")
    theirs = loaded.SAE.load_from_disk(tmp_path)
    agrees(theirs.encode, theirs.decode, sae)
    with torch.no_grad():
        torch.testing.assert_close(theirs(raw_rows(sae)), sae.reconstruct(raw_rows(sae)), rtol=1e-5, atol=1e-4)


def test_dictionary_learning_gives_the_same_values_and_reconstructions(tmp_path: Path, sae: SAE) -> None:
    loaded = peer("dictionary_learning.utils")
    export(sae, tmp_path, "dictionary_learning")
    theirs, config = loaded.load_dictionary(str(tmp_path), "cpu")
    assert config["trainer"]["layer"] == sae.recipe.layer
    agrees(theirs.encode, theirs.decode, sae)


@pytest.mark.parametrize(
    ("package", "format"), [("sae_lens", "sae_lens"), ("dictionary_learning.utils", "dictionary_learning")]
)
def test_a_value_at_the_threshold_is_off_in_both(tmp_path: Path, package: str, format: str) -> None:
    """Numbers that floats hold exactly: the value of latent i is entry i of the row."""
    exact = SAE(recipe_of(SAE, Sparsity(D_MODEL, K), D_MODEL))
    exact.encoder.copy_(torch.eye(D_MODEL))
    exact.decoder.copy_(torch.eye(D_MODEL))
    exact.threshold.fill_(0.5)
    row = torch.tensor([[0.5, 0.5 + 2**-20, 0.5 - 2**-20, -1.0] + [0.0] * (D_MODEL - 4)])
    export(exact, tmp_path, format)
    module = peer(package)
    theirs = (
        module.SAE.load_from_disk(tmp_path) if format == "sae_lens" else module.load_dictionary(str(tmp_path), "cpu")[0]
    )
    expected = [False, True, False, False]
    assert (exact.encode(row)[0, :4] > 0).tolist() == expected
    assert (theirs.encode(row)[0, :4] > 0).tolist() == expected


@pytest.mark.parametrize("format", FORMATS)
def test_a_crosscoder_is_refused(tmp_path: Path, format: str) -> None:
    crosscoder = at_random(Crosscoder, recipe_of(Crosscoder, Sparsity(LATENTS, K)))
    with pytest.raises(InvalidSetting, match="a crosscoder cannot be written"):
        export(crosscoder, tmp_path / "target", format)
    assert not (tmp_path / "target").exists()


def test_an_unknown_format_is_refused(tmp_path: Path, sae: SAE) -> None:
    with pytest.raises(InvalidSetting, match="sae_lens, dictionary_learning"):
        export(sae, tmp_path, "gguf")


@pytest.mark.parametrize("format", FORMATS)
def test_a_target_that_cannot_be_written_is_named(tmp_path: Path, sae: SAE, format: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageFailed, match="file"):
        export(sae, tmp_path / "file", format)


def test_the_command_writes_a_folder_from_a_folder(tmp_path: Path, sae: SAE, capsys: pytest.CaptureFixture) -> None:
    sae.save(tmp_path / "learners" / "layer_0")
    main([str(tmp_path / "learners" / "layer_0"), str(tmp_path / "out"), "--format", "dictionary_learning"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ae.pt", "config.json"]
    main([str(tmp_path / "learners" / "layer_0"), str(tmp_path / "lens")])
    assert sorted(path.name for path in (tmp_path / "lens").iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    with pytest.raises(SystemExit):
        main([str(tmp_path / "learners"), str(tmp_path / "out")])
    assert "holds several learners; give one of" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path / "nowhere"), str(tmp_path / "out")])
    assert "no learner in" in capsys.readouterr().err
