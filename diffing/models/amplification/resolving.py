"""Which weight each part of a finetune gets: known before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from diffing.errors import InvalidSetting, UnknownName
from diffing.models.amplification.grammar import ALL, GROUPS, Amplification, LayerRange, Layers, Rule
from diffing.models.amplification.parts import Part, Places
from diffing.specs import JSON, layer_at


@dataclass(frozen=True)
class Resolution:
    """An amplification, worked out for one pair."""

    amplification: Amplification
    weights: Mapping[Part, float]
    """Of every part that the finetune and the added adapters changed; 1 where no rule applies."""
    unmatched: Sequence[str] = field(default=())
    """Rules that name no part that was changed: they have no effect."""

    def changed(self) -> dict[Part, float]:
        """Parts whose weight is not that of the finetuned model: those of the pair's own at other weights than 1, those
        of added adapters at any."""
        return {part: weight for part, weight in self.weights.items() if weight != 1.0 or part.adapter}

    def rows(self) -> list[dict[str, JSON]]:
        """What is matched, for readers: modules of like weight together, by adapter, layer and group."""
        together: dict[tuple, list[str]] = {}
        for part, weight in self.weights.items():
            together.setdefault((part.adapter, part.layer, part.group, weight), []).append(part.module)
        keys = sorted(together, key=lambda key: (key[0], key[1] is None, key[1] or 0, key[2], key[3]))
        names = ("adapter", "layer", "group", "weight")
        return [{**dict(zip(names, key, strict=True)), "modules": sorted(set(together[key]))} for key in keys]


def resolve(amplification: Amplification, parts: Mapping[str, Sequence[Part]], places: Places) -> Resolution:
    """Weights of the parts of the pair's own finetune (under the empty name) and of added adapters (under their ids).

    Raises InvalidSetting or UnknownName, with the place, for a layer that the model has not, an unknown module, and
    rules of which none names anything that its adapter changed. Where nothing was changed at all, nothing is refused.
    """
    ruled = {"": amplification.rules} | {each.id: each.rules for each in amplification.adapters}
    weights: dict[Part, float] = {}
    unmatched: list[str] = []
    for adapter, rules in ruled.items():
        place = f"amplification '{amplification.name}'" + (f", adapter '{adapter}'" if adapter else "")
        of_adapter = dict.fromkeys(parts[adapter], 1.0)
        missed, asking = [], 0
        for number, rule in enumerate(rules, 1):
            there = f"{place}, rule {number} ({_shown(rule)})"
            covered = _covered(rule, of_adapter, places, there)
            of_adapter |= dict.fromkeys(covered, rule.weight)
            asking += bool(rule.modules and rule.layers != ())
            if not covered and rule.modules and rule.layers != ():
                missed.append(there)
        if missed and len(missed) == asking and of_adapter:
            changed = sorted({f"{part.group} of {_where(part)}" for part in of_adapter})
            raise InvalidSetting(
                f"{place}: no rule names anything that the finetune changed; it changed "
                f"{', '.join(changed[:6])}{' ...' if len(changed) > 6 else ''}"
            )
        weights |= of_adapter
        unmatched += missed
    return Resolution(amplification, weights, unmatched)


def layers_of(layers: Layers, n_layers: int) -> set[int | None]:
    """Absolute layers; `all` has None too, for what lies outside of the blocks."""
    if layers == ALL:
        return {None, *range(n_layers)}
    found: set[int | None] = set()
    for each in layers if isinstance(layers, tuple) else (layers,):
        if isinstance(each, LayerRange):
            found |= set(range(_absolute(each.start, n_layers), _absolute(each.end, n_layers) + 1))
        else:
            assert not isinstance(each, str)  # Rule checks
            found.add(_absolute(each, n_layers))
    return found


def _absolute(layer: int | float, n_layers: int) -> int:
    if isinstance(layer, float):
        return round(layer * (n_layers - 1))
    return layer_at(layer, n_layers)


def _covered(rule: Rule, parts: Mapping[Part, float], places: Places, there: str) -> list[Part]:
    try:
        layers = layers_of(rule.layers, places.n_layers)
    except InvalidSetting as error:
        raise InvalidSetting(f"{there}: {error}") from error
    for name in rule.modules:
        if name != ALL and name not in GROUPS and not places.has(name):
            raise UnknownName("module", name, [ALL, *GROUPS, *places.names()], f"in {there}")
    return [
        part for part in parts if part.layer in layers and any(name == ALL or part.is_of(name) for name in rule.modules)
    ]


def _shown(rule: Rule) -> str:
    return ", ".join(f"{key}: {value}" for key, value in rule.as_mapping().items())


def _where(part: Part) -> str:
    return part.name if part.layer is None else f"layer {part.layer}"
