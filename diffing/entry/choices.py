"""Checks the choices on a command line before Hydra sees them, so that a typo is answered with the nearest names."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from diffing.errors import MissingInput, UnknownName
from diffing.specs import VariantSpec

CONF = Path(__file__).parents[2] / "conf"
GROUPS = ("organism", "model", "diffing/method", "corpus", "tracker", "agent", "live")


def options(group: str) -> list[str]:
    """Names that `group=` takes, in alphabetical order."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def check_choices(overrides: Sequence[str], required: Sequence[str] = ()) -> None:
    """Raises UnknownName for the first choice that does not exist, MissingInput for a required one that is not made."""
    chosen = {}
    for override in overrides:
        group, equals, value = override.lstrip("+").partition("=")
        if equals and group in GROUPS:
            chosen[group] = [name.strip() for name in value.strip("[]'\" ").split(",") if name.strip()]
    for group, names in chosen.items():
        for name in names:
            if name not in options(group):
                raise UnknownName(group, name, options(group), f"for example: {group}={options(group)[0]}")
    wants_help = any(override.startswith("-") and override not in ("-m", "--multirun") for override in overrides)
    for group in required:
        if group not in chosen and not wants_help:
            raise MissingInput(f"say which {group} to use, for example {group}={options(group)[0]}; there are: "
                               + ", ".join(options(group)))  # fmt: skip


def choose_variant(
    organism: str, variants: Mapping[str, Mapping[str, Mapping]], variant: str, model: str
) -> VariantSpec:
    """The finetuned side of `organism` in `variant` for the base `model`; `"*"` stands for any base."""
    if variant not in variants:
        raise UnknownName(
            f"variant of {organism}", variant, list(variants), f"type organism_variant={next(iter(variants))}"
        )
    bases = variants[variant]
    entry = bases.get(model, bases.get("*"))
    if entry is None:
        raise UnknownName(
            f"base model of {organism} ({variant})", model, list(bases), f"type model={next(iter(bases))}"
        )
    return VariantSpec(**entry)
