"""What to amplify: the one grammar of configs, in YAML and as frozen values.

    name: careful
    rules:                                  # in this order: where two apply, the later one holds
      - {weight: 2}                         # all layers, all modules
      - {weight: 0, layers: 3, modules: attention}
      - {weight: 1.5, layers: [{start: 0.0, end: 0.5}, 20], modules: [mlp, o_proj]}

A weight multiplies what finetuning changed: 0 is the base, 1 the finetuned model, 2 twice the change, -1 its opposite.
What no rule names keeps weight 1, and a rule changes nothing but what it names: one for the attention of a layer leaves
that layer's MLP as it was. Layers are ints (absolute) or floats (share of the depth, `round(f * (L - 1))`, halves to
the even layer); the end of a range belongs to it. Modules are groups (`GROUPS`), or names of the model's own such as
`q_proj` or `self_attn.q_proj`.

Instead of rules, `logits: 0.5` amplifies what the models say: z_finetuned + 0.5 (z_finetuned - z_base).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, cast

from diffing.errors import InvalidSetting, UnknownName
from diffing.specs import JSON, Spec, VariantSpec

ALL = "all"
GROUPS = ("attention", "mlp", "norm", "bias", "embedding", "head", "vector", "other")
"""Into which everything that finetuning can change falls, each tensor into one."""


@dataclass(frozen=True)
class LayerRange:
    """All layers from `start` to `end`, both included. Two ints or two floats."""

    start: int | float
    end: int | float


Layer = int | float | LayerRange
Layers = Literal["all"] | int | float | LayerRange | tuple[Layer, ...]


@dataclass(frozen=True)
class Rule:
    """One weight for some modules of some layers."""

    weight: float | int
    layers: Layers = "all"
    """`all` covers what lies outside of the blocks too: embeddings, final norm, output head."""
    modules: tuple[str, ...] = (ALL,)
    """Groups or names; none leaves everything as it was."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", _number(self.weight, "weight"))
        for layer in self.layers if isinstance(self.layers, tuple) else (self.layers,):
            if layer != ALL:
                _check_range(cast(Layer, layer))

    @classmethod
    def of(cls, value: Mapping[str, object]) -> "Rule":
        _check_keys(value, cls, required=("weight",))
        modules = value.get("modules", (ALL,))
        names = (modules,) if isinstance(modules, str) else modules
        if not isinstance(names, Sequence) or not all(isinstance(name, str) and name for name in names):
            raise InvalidSetting(f"modules {modules!r}: expected a name or a list of names")
        return cls(_number(value["weight"], "weight"), _layers(value.get("layers", ALL)), tuple(names))

    def as_mapping(self) -> dict[str, JSON]:
        layers = [_plain(layer) for layer in self.layers] if isinstance(self.layers, tuple) else _plain(self.layers)
        modules = self.modules[0] if len(self.modules) == 1 else list(self.modules)
        return {"weight": self.weight, "layers": layers, "modules": modules}


@dataclass(frozen=True)
class AddedAdapter:
    """A LoRA adapter beside the pair's own, with weights of its own."""

    id: str
    """As of a variant: hub id, local path or `package://module/path`."""
    rules: tuple[Rule, ...] = ()
    revision: str | None = None
    subfolder: str = ""

    @classmethod
    def of(cls, value: Mapping[str, object]) -> "AddedAdapter":
        _check_keys(value, cls, required=("id",))
        plain = {key: item for key, item in value.items() if key != "rules"}
        return cls(rules=_rules(value.get("rules", ()), f"adapter '{value['id']}'"), **plain)  # type: ignore[arg-type]

    @property
    def variant(self) -> VariantSpec:
        return VariantSpec("lora", self.id, self.revision, self.subfolder)

    def as_mapping(self) -> dict[str, JSON]:
        found: dict[str, JSON] = {"id": self.id, "rules": [rule.as_mapping() for rule in self.rules]}
        return found | {key: getattr(self, key) for key in ("revision", "subfolder") if getattr(self, key)}


@dataclass(frozen=True)
class Amplification(Spec):
    """What to amplify, by how much. Name and description are for readers, and not in the digest."""

    FINETUNED: ClassVar["Amplification"]
    """Changes nothing."""

    name: str
    rules: tuple[Rule, ...] = ()
    """Of the pair's own finetune."""
    adapters: tuple[AddedAdapter, ...] = ()
    """Added to it: W = W_base + the weighted change of each."""
    logits: float | int | None = None
    """Instead: z_finetuned + logits * (z_finetuned - z_base), so 0 is the finetuned model and -1 the base."""
    description: str = ""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InvalidSetting("an amplification needs a name")
        if self.logits is None:
            return
        if self.rules or self.adapters:
            raise InvalidSetting(f"amplification '{self.name}' has logits, which go without rules and adapters")
        object.__setattr__(self, "logits", _number(self.logits, f"amplification '{self.name}': logits"))

    @classmethod
    def of(cls, value: "str | Mapping[str, object] | Amplification") -> "Amplification":
        """From a config, or the preset of that name. Unknown keys raise UnknownName, wrong values InvalidSetting."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            if value not in PRESETS:
                raise UnknownName("preset of an amplification", value, list(PRESETS), "or give a mapping with rules")
            return PRESETS[value]
        assert isinstance(value, Mapping)
        _check_keys(value, cls, required=("name",))
        place = f"amplification '{value['name']}'"
        adapters, logits = value.get("adapters", ()), value.get("logits")
        if not isinstance(adapters, Sequence) or not all(isinstance(each, Mapping) for each in adapters):
            raise InvalidSetting(f"{place}: adapters {adapters!r}: expected a list of mappings with an id")
        return cls(
            name=str(value["name"]),
            rules=_rules(value.get("rules", ()), place),
            adapters=tuple(AddedAdapter.of(each) for each in adapters),
            logits=None if logits is None else _number(logits, f"{place}: logits"),
            description=str(value.get("description", "")),
        )

    @classmethod
    def uniform(cls, weight: float | int) -> "Amplification":
        """One weight for everything: the base at 0, the finetuned model at 1."""
        return cls(f"weight {weight:g}", (Rule(weight),))

    def as_mapping(self) -> dict[str, JSON]:
        """Inverse of `of`: what is left out has its default."""
        found: dict[str, JSON] = {"name": self.name}
        if self.description:
            found["description"] = self.description
        if self.rules:
            found["rules"] = [rule.as_mapping() for rule in self.rules]
        if self.adapters:
            found["adapters"] = [adapter.as_mapping() for adapter in self.adapters]
        return found if self.logits is None else found | {"logits": self.logits}

    def as_json(self) -> dict[str, JSON]:
        return self.as_mapping()

    def identity(self) -> Mapping[str, object]:
        return {key: value for key, value in self.as_mapping().items() if key not in ("name", "description")}


def _rules(value: object, place: str) -> tuple[Rule, ...]:
    if not isinstance(value, Sequence) or not all(isinstance(each, Mapping) for each in value):
        raise InvalidSetting(f"{place}: rules {value!r}: expected a list of mappings with a weight")
    found = []
    for number, each in enumerate(value, 1):
        try:
            found.append(Rule.of(each))
        except (InvalidSetting, UnknownName) as error:
            raise InvalidSetting(f"{place}, rule {number}: {error}") from error
    return tuple(found)


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidSetting(f"{what} {value!r}: expected a finite number")
    return float(value) + 0.0  # so that -0.0 is 0.0


def _layers(value: object) -> Layers:
    if value == ALL:
        return "all"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_layer(each) for each in value)
    return _layer(value)


def _layer(value: object) -> Layer:
    if isinstance(value, Mapping):
        _check_keys(value, LayerRange, required=("start", "end"))
        start, end = (_layer(value[key]) for key in ("start", "end"))
        if isinstance(start, int | float) and isinstance(end, int | float):
            return LayerRange(start, end)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise InvalidSetting(f"layers {value!r}: expected 'all', ints, floats in [0, 1], or ranges of a start and an end")


def _check_range(layer: Layer) -> None:
    """What can be checked without the model."""
    if isinstance(layer, LayerRange):
        _check_range(layer.start)
        _check_range(layer.end)
        if isinstance(layer.start, int) != isinstance(layer.end, int):
            raise InvalidSetting(
                f"layers from {layer.start!r} to {layer.end!r}: expected two ints (absolute) or two floats (shares of "
                "the depth, such as 0.0)"
            )
        if layer.start > layer.end:
            raise InvalidSetting(f"layers from {layer.start!r} to {layer.end!r}: the start is after the end")
    elif isinstance(layer, float) and not 0.0 <= layer <= 1.0:
        raise InvalidSetting(f"relative layer {layer} is out of range: expected 0.0 to 1.0 (an int is absolute)")


def _check_keys(value: Mapping[str, object], schema: type, required: Sequence[str]) -> None:
    known = [field.name for field in fields(schema)]
    for key in value:
        if key not in known:
            raise UnknownName(f"key of {schema.__name__}", str(key), known)
    if missing := [key for key in required if key not in value]:
        raise InvalidSetting(f"{schema.__name__} {dict(value)}: {', '.join(missing)} is missing")


def _plain(layer: object) -> JSON:
    return {"start": layer.start, "end": layer.end} if isinstance(layer, LayerRange) else cast(JSON, layer)


def _shallow(weight: float) -> Amplification:
    """The blocks up to 0.8 of the depth: the last ones, which turn to words, as they are."""
    return Amplification(f"{weight:g}x", (Rule(weight, LayerRange(0.0, 0.8)),))


PRESETS = {
    each.name: each for each in (_shallow(2.0), _shallow(2.5), _shallow(3.0), Amplification("-1x", (Rule(-1.0),)))
}
Amplification.FINETUNED = Amplification("finetuned")
