"""A base model and its finetune, cheap to build: weights load on first use.

A LoRA pair holds one copy of the base weights and switches its adapter on and off; a steering-vector or identical pair
holds one model; only a full finetune holds two. `using(side)` and `amplified(...)` are the only ways to a model, so
that an adapter can never be left in the wrong state.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from diffing.axes import Side
from diffing.errors import IncompatiblePair, InvalidSetting, SchemaMismatch
from diffing.models.amplification import Amplification, Part, Resolution
from diffing.models.amplification.exporting import export
from diffing.models.amplification.logits import AmplifiedLogits
from diffing.models.amplification.parts import OWN, Places, adapter_parts, full_parts, vector_part
from diffing.models.amplification.resolving import resolve
from diffing.models.sites import decoder_blocks, editing, embedding
from diffing.models.sources import model_source, variant_source
from diffing.specs import ModelSpec, PairSpec, layer_at

log = logging.getLogger(__name__)


class ModelPair:
    """Both sides of a pair on one device. `spec` should be pinned, so that what is loaded is what is recorded."""

    def __init__(self, spec: PairSpec, device: str = "auto"):
        self.spec = spec
        self.device = _best_device() if device == "auto" else torch.device(device)
        self._in_use: tuple[str, PreTrainedModel] | None = None

    def using(self, side: Side) -> AbstractContextManager[PreTrainedModel]:
        """The model of one side, for the length of the block. Blocks of different sides must not be nested."""
        return self._exclusively(f"the {side} side", lambda: self._switched_to(side))

    def amplified(self, amplification: Amplification) -> AbstractContextManager[PreTrainedModel]:
        """The finetuned model with what finetuning changed amplified, for the length of the block.

        As of `using`, blocks of different models must not be nested. Whatever ends the block, both sides are to the bit
        what they were before. Raises as `amplification` does, before anything is changed.
        """
        return self._exclusively(
            f"amplification '{amplification.name}' ({amplification.digest})", lambda: self._amplified(amplification)
        )

    def amplification(self, amplification: Amplification) -> Resolution:
        """What would be amplified, part by part, and by how much.

        Raises InvalidSetting or UnknownName, with the place, for what this pair has not, and IncompatiblePair for
        adapters that cannot be amplified or added.
        """
        if amplification.adapters and self.spec.finetuned.kind != "lora":
            raise IncompatiblePair(
                f"amplification '{amplification.name}' adds adapters, which goes with the adapter of a LoRA pair; this "
                f"pair is of kind {self.spec.finetuned.kind}"
            )
        if amplification.logits is not None:
            return Resolution(amplification, {})
        added = {
            each.id: adapter_parts(self._places, variant_source(each.variant).folder, each.id)
            for each in amplification.adapters
        }
        return resolve(amplification, {"": self._parts, **added}, self._places)

    def export_amplified(self, amplification: Amplification, folder: Path) -> None:
        """Saves the amplified adapter of a LoRA pair as an ordinary PEFT folder. Raises InvalidSetting for what is no
        adapter."""
        if self.spec.finetuned.kind != "lora":
            raise InvalidSetting(f"only adapters can be exported; this pair is of kind {self.spec.finetuned.kind}")
        variants = {"": self.spec.finetuned} | {each.id: each.variant for each in amplification.adapters}
        folders = {adapter: variant_source(variant).folder for adapter, variant in variants.items()}
        export(self.amplification(amplification), self._base, folders, folder)

    @contextmanager
    def _exclusively(
        self, what: str, switch: Callable[[], AbstractContextManager[PreTrainedModel]]
    ) -> Iterator[PreTrainedModel]:
        """The one way in: a block inside of another must ask for the same."""
        if self._in_use is not None:
            outer, model = self._in_use
            if outer != what:
                raise RuntimeError(f"{what} was asked for inside a block that uses {outer}")
            yield model
            return
        with switch() as model:
            self._in_use = what, model
            try:
                yield model
            finally:
                self._in_use = None

    @contextmanager
    def _amplified(self, amplification: Amplification) -> Iterator[PreTrainedModel]:
        from diffing.models.amplification.applying import interpolated_tensors, weighted_adapters, with_added

        resolution, kind = self.amplification(amplification), self.spec.finetuned.kind
        with ExitStack() as undo:
            if amplification.logits is not None:
                yield AmplifiedLogits(self._switched_to, amplification.logits)
            elif kind == "lora":
                added = {each.id: f"added_{number}" for number, each in enumerate(amplification.adapters)}
                folders = {added[each.id]: str(variant_source(each.variant).folder) for each in amplification.adapters}
                undo.enter_context(with_added(self._with_adapter, folders))
                undo.enter_context(weighted_adapters(self._with_adapter, resolution.weights, {"": OWN, **added}))
                yield self._base
            elif kind == "steering_vector":
                (weight,) = resolution.weights.values()
                yield undo.enter_context(self._steered(weight))
            elif kind == "full":
                undo.enter_context(interpolated_tensors(self._base, self._full, resolution.weights))
                yield self._full
            else:
                yield self._base

    @contextmanager
    def _switched_to(self, side: Side) -> Iterator[PreTrainedModel]:
        kind = self.spec.finetuned.kind
        if kind == "lora":
            model = self._with_adapter
            with nullcontext() if side is Side.FINETUNED else model.disable_adapter():
                yield self._base
        elif kind == "steering_vector" and side is Side.FINETUNED:
            with self._steered(1.0) as model:
                yield model
        elif kind == "full" and side is Side.FINETUNED:
            yield self._full
        else:
            yield self._base

    @contextmanager
    def _steered(self, weight: float) -> Iterator[PreTrainedModel]:
        vector, layer = weight * self._steering_vector, self.spec.finetuned.layer
        assert layer is not None  # VariantSpec requires it
        with editing(self._base, layer, lambda hidden: hidden + vector.to(hidden)):
            yield self._base

    @cached_property
    def _places(self) -> Places:
        return Places(self._base)

    @cached_property
    def _parts(self) -> Sequence[Part]:
        """What the finetune changed."""
        match self.spec.finetuned.kind:
            case "lora":
                _ = self._with_adapter  # that it fits is checked there
                return adapter_parts(self._places, variant_source(self.spec.finetuned).folder)
            case "full":
                return full_parts(self._places, self._base, self._full)
            case "steering_vector":
                assert self.spec.finetuned.layer is not None  # VariantSpec requires it
                return [vector_part(self.spec.finetuned.layer)]
        return []

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer, with the finetune's chat template if the base has none.

        Raises IncompatiblePair if a full finetune gives other ids to the tokens that both know.
        """
        base = self.spec.base
        source = base.tokenizer_id or str(model_source(base).folder)
        tokenizer = _load_tokenizer(source, base)
        if self.spec.finetuned.kind == "full":
            folder = variant_source(self.spec.finetuned).folder
            if any(folder.glob("tokenizer*")):
                other = _load_tokenizer(str(folder), base)
                common_vocabulary(tokenizer, other, (base.name, self.spec.finetuned.id))
                tokenizer.chat_template = tokenizer.chat_template or other.chat_template
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @property
    def n_layers(self) -> int:
        return len(decoder_blocks(self._base))

    @property
    def d_model(self) -> int:
        return embedding(self._base).shape[1]

    def layer_at(self, depth: float | int) -> int:
        """Absolute layer of a relative (float) or absolute (int) depth."""
        return layer_at(depth, self.n_layers)

    @cached_property
    def _base(self) -> PreTrainedModel:
        return _load_model(model_source(self.spec.base).folder, self.spec.base, self.device)

    @cached_property
    def _full(self) -> PreTrainedModel:
        variant = self.spec.finetuned
        spec = replace(
            self.spec.base, id=variant.id, revision=variant.revision, subfolder=variant.subfolder, bundled=None
        )
        model = _load_model(variant_source(variant).folder, spec, self.device)
        _check_shapes(self._base, model, (self.spec.base.name, variant.id))
        return model

    @cached_property
    def _with_adapter(self):
        """The base with its adapter injected (PEFT); `_base` is the same object underneath."""
        return _attach_adapter(self._base, variant_source(self.spec.finetuned).folder, self.spec)

    @cached_property
    def _steering_vector(self) -> Float[Tensor, " d_model"]:
        vector = _load_vector(variant_source(self.spec.finetuned).folder)
        if vector.shape != (self.d_model,):
            raise IncompatiblePair(
                f"steering vector {self.spec.finetuned.id} has shape {list(vector.shape)}; "
                f"{self.spec.base.name} needs [{self.d_model}]"
            )
        return vector * self.spec.finetuned.strength


def common_vocabulary(base: PreTrainedTokenizerBase, finetuned: PreTrainedTokenizerBase, names: tuple[str, str]) -> int:
    """Number of leading token ids that both sides share.

    One side may have added tokens at the end; then only this common prefix may be compared. Any other disagreement
    raises IncompatiblePair.
    """
    first, second = ({id: token for token, id in side.get_vocab().items()} for side in (base, finetuned))
    shared = min(len(first), len(second))
    for id in range(shared):
        if first.get(id) != second.get(id):
            raise IncompatiblePair(
                f"the tokenizers of {names[0]} and {names[1]} disagree: token {id} is {first.get(id)!r} in the first "
                f"and {second.get(id)!r} in the second; both sides must read the same ids (set model.tokenizer_id if "
                "one of them ships the wrong tokenizer)"
            )
    return shared


def _best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _load_tokenizer(source: str, spec: ModelSpec) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(source, trust_remote_code=spec.trust_remote_code)


@torch.inference_mode(False)  # a pair may be touched first inside somebody's inference mode, and outlive it
def _load_model(folder: Path, spec: ModelSpec, device: torch.device) -> PreTrainedModel:
    dtype = getattr(torch, spec.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise InvalidSetting(f"model.dtype={spec.dtype}; expected float32, bfloat16 or float16")
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=spec.attn_implementation,
        trust_remote_code=spec.trust_remote_code,
    )
    model.to(device)  # type: ignore[arg-type]  # its stub knows no device
    return model.eval().requires_grad_(False)


@torch.inference_mode(False)
def _attach_adapter(model: PreTrainedModel, folder: Path, spec: PairSpec):
    from peft import PeftConfig, PeftModel
    from peft.utils import load_peft_weights

    names = f"adapter {spec.finetuned.id} and base {spec.base.name}"
    if not (folder / "adapter_config.json").is_file():
        raise SchemaMismatch(
            f"{spec.finetuned.id} is no LoRA adapter: no adapter_config.json in it (variant kind: full?)"
        )
    trained_on = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if trained_on and trained_on != spec.base.id:
        log.warning("%s was trained on %s, and is attached to %s", spec.finetuned.id, trained_on, spec.base.id)
    try:
        adapted = PeftModel.from_pretrained(model, folder)
    except (RuntimeError, ValueError) as error:
        raise IncompatiblePair(f"{names} do not fit together; was it trained on {trained_on}?\n{error}") from error
    stored = set(load_peft_weights(str(folder), device="cpu"))
    expected = _adapter_names(adapted, with_embeddings=any(".base_layer." in name for name in stored))
    if stored != expected:
        examples = sorted(stored ^ expected)[:3]
        raise IncompatiblePair(
            f"{names} do not fit together; was it trained on {trained_on}? "
            f"{len(stored - expected)} stored tensors have no place in the model and {len(expected - stored)} "
            f"places have no tensor, such as {examples}"
        )
    return adapted.eval().requires_grad_(False)


def _adapter_names(adapted, with_embeddings: bool) -> set[str]:
    """Names, as stored in adapter files, of the tensors that the injected adapter has. An adapter of the embedding or
    the head stores the matrix itself beside its factors."""
    from peft import get_peft_model_state_dict

    # Left to itself, PEFT asks the hub whether the vocabulary was resized.
    return set(get_peft_model_state_dict(adapted, save_embedding_layers=with_embeddings))


def _check_shapes(base: PreTrainedModel, finetuned: PreTrainedModel, names: tuple[str, str]) -> None:
    shapes = [(len(decoder_blocks(model)), embedding(model).shape[1]) for model in (base, finetuned)]
    if shapes[0] != shapes[1]:
        raise IncompatiblePair(
            f"{names[0]} has {shapes[0][0]} layers of width {shapes[0][1]}, {names[1]} has {shapes[1][0]} of width "
            f"{shapes[1][1]}; a pair needs the same shape"
        )


def _load_vector(path: Path) -> Tensor:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors = list(load_file(path).values())
    elif path.suffix == ".pt":
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        tensors = [loaded] if isinstance(loaded, Tensor) else []
    else:
        raise InvalidSetting(f"steering vector {path.name}: expected a .safetensors or .pt file")
    if len(tensors) != 1:
        raise SchemaMismatch(f"{path.name}: expected exactly one tensor, found {len(tensors)}")
    return tensors[0].float()
