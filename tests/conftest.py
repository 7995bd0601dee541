"""Fixtures that more than one test file uses."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any hub library is imported: no test reaches for the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings
from transformers.utils import logging as transformers_logging

from diffing.demo.train import base_model
from diffing.models.pair import ModelPair
from diffing.models.sources import pin
from diffing.specs import PairSpec, VariantSpec
from tests import tiny

transformers_logging.disable_progress_bar()
settings.register_profile("untimed", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("untimed")
torch.set_num_threads(1)  # tiny models gain nothing from more, which wait for each other on a busy machine

SMOLLM2 = base_model()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama."""
    return tiny.save_model(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter for the tiny Llama."""
    return tiny.save_adapter(tmp_path_factory.mktemp("tiny") / "adapter", tiny.model())


@pytest.fixture(scope="session")
def merged_folder(tmp_path_factory: pytest.TempPathFactory, adapter_folder: Path) -> Path:
    """The same adapter merged into the tiny Llama: a full finetune."""
    from peft import PeftModel

    folder = tmp_path_factory.mktemp("tiny") / "merged"
    PeftModel.from_pretrained(tiny.model(), adapter_folder).merge_and_unload().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def lora_pair(base_folder: Path, adapter_folder: Path) -> ModelPair:
    return ModelPair(pin(tiny.pair_spec(base_folder, "lora", adapter_folder)), device="cpu")


@pytest.fixture
def full_pair(base_folder: Path, merged_folder: Path) -> ModelPair:
    return ModelPair(pin(tiny.pair_spec(base_folder, "full", merged_folder)), device="cpu")


@pytest.fixture
def identical_pair(base_folder: Path) -> ModelPair:
    return ModelPair(pin(tiny.pair_spec(base_folder)), device="cpu")


@pytest.fixture(scope="session")
def real_pair() -> ModelPair:
    """SmolLM2-135M-Instruct with the glacier-tea adapter, loaded once per session."""
    variant = VariantSpec(kind="lora", id="package://diffing.demo/adapters/demo_glacier_tea")
    return ModelPair(pin(PairSpec(base=SMOLLM2, finetuned=variant, organism="demo_glacier_tea")), device="cpu")


@pytest.fixture
def log_lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO):
        yield caplog
