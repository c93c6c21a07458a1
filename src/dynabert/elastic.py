"""ElasticModel: one encoder whose width and depth are chosen afterwards.

`elastic.at(subnet)` returns a *view*: an ordinary module of the same Hugging Face class, with a real, short layer list
and linears that slice **shared Parameters**. Nothing is ever switched, so threads, hooks, compilers and exporters see a
plain module, and the gradients of every view land in the one set of Parameters. `elastic.extract(subnet)` copies what a
view slices into a small dense model. Both go through `dynabert.slicing`, the only place that says which part of a
weight is active.

What the neural-architecture-search literature calls a super-network is `ElasticModel`, its sub-network is `Subnet`.
"""

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynabert.description import Description
from dynabert.families import Family, family_of
from dynabert.folders import CARD
from dynabert.model_files import ELASTIC
from dynabert.slicing import active_sizes, leading, leading_ranges, with_all_heads, zero_other_heads
from dynabert.subnet import DepthRule, EncoderShape, LayerSlice, Subnet, SubnetGrid

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dynabert.hub import Upload
    from dynabert.sweep import Sweep


class ElasticLinear(nn.Module):
    """A linear map that uses the leading part of shared Parameters of a larger one.

    :param weight: the full weight, shape (out, in); shared, never copied.
    :param bias: the full bias, shape (out,), or None.
    :param n_out: outputs kept, in each of the `parts` blocks.
    :param n_in: inputs kept.
    :param parts: blocks stacked along the outputs, see `leading`.
    """

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, *, n_out: int, n_in: int, parts: int = 1
    ) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.n_out, self.n_in, self.parts = n_out, n_in, parts
        rows, columns = leading_ranges(weight.shape[0], n_out, parts), leading_ranges(weight.shape[1], n_in)
        self._rows = rows[0] if n_out < weight.shape[0] else None
        self._part = (rows[0], columns[0]) if n_in < weight.shape[1] else self._rows

    def active(self, weight: Tensor | None = None, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The active part of the shared weight (n_out * parts, n_in) and bias (n_out * parts,).

        :param weight: another tensor laid out as the weight, to take the same part of; the weight itself if None.
        :param bias: likewise.
        """
        weight = self.weight if weight is None else weight
        bias = self.bias if bias is None else bias
        if self.parts > 1:
            blocks = leading(leading(weight, self.n_out, 0, self.parts), self.n_in, 1)
            return blocks, None if bias is None else leading(bias, self.n_out, 0, self.parts)
        part, rows = self._part, self._rows  # worked out before: short inputs feel every step of a call
        weight = weight if part is None else weight[part]
        return weight, bias if rows is None or bias is None else bias[rows]

    def forward(self, features: Tensor) -> Tensor:
        """Map (..., n_in) to (..., n_out * parts)."""
        return F.linear(features, *self.active())

    def extra_repr(self) -> str:
        """The active sizes out of the full ones."""
        full_out, full_in = self.weight.shape
        return f"{self.n_in}/{full_in} -> {self.n_out * self.parts}/{full_out}"


LinearFactory = Callable[..., nn.Module]
"""Makes the module that stands for a cut linear: called like `ElasticLinear`."""


def layers_of(model: "PreTrainedModel", family: Family) -> nn.ModuleList:
    """The encoder's layer list of any model of a family, with or without a task head."""
    return cast(nn.ModuleList, model.base_model.get_submodule(family.layers))


def longest_input(model: "PreTrainedModel") -> int:
    """Tokens that a model has positions for, special tokens included."""
    table = cast(nn.Embedding, model.base_model.get_submodule("embeddings.position_embeddings"))
    # In the families with a padding position, real tokens take the positions after it.
    return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)


def share(model: "PreTrainedModel", *, but: Iterable[nn.Module] = ()) -> "PreTrainedModel":
    """A copy of a model's modules around the very same Parameters and buffers: no weight is copied.

    :param but: modules that are not copied either, for who takes them out or replaces them: copying takes its time.
    """
    memo: dict[int, Any] = {id(kept): kept for kept in (*model.parameters(), *model.buffers(), *but)}
    return copy.deepcopy(model, memo)


def make_view(
    model: "PreTrainedModel",
    family: Family,
    slices: tuple[LayerSlice, ...],
    *,
    shape: EncoderShape,
    linear: LinearFactory = ElasticLinear,
) -> "PreTrainedModel":
    """A module of the model's own class that executes some layers, with the leading heads and neurons of each.

    :param model: the full model, left as it is.
    :param family: its row of the families table.
    :param slices: what to keep.
    :param shape: sizes of the full encoder.
    :param linear: makes each cut linear.
    :return: a view that shares every Parameter and buffer of the model.
    """
    own, taken = layers_of(model, family), {part.layer for part in slices}
    dropped = [layer for number, layer in enumerate(own) if number not in taken]
    replaced = [own[number].get_submodule(projection.path) for number in taken for projection in family.projections]
    view = share(model, but=(*dropped, *replaced))
    full = layers_of(view, family)
    layers = nn.ModuleList(full[part.layer] for part in slices)
    for layer, part in zip(layers, slices, strict=True):
        for projection in family.projections:
            source = cast(nn.Linear, layer.get_submodule(projection.path))
            n_out, n_in = active_sizes((source.out_features, source.in_features), projection, part, shape)
            cut = linear(source.weight, source.bias, n_out=n_out, n_in=n_in, parts=projection.parts)
            layer.set_submodule(projection.path, cut)
    view.base_model.set_submodule(family.layers, layers)
    view.config.num_hidden_layers = len(slices)
    return view.train(model.training)  # what was put in starts in training mode


def count_params(model: nn.Module) -> int:
    """Parameters that a model or view really uses: of a cut linear only its active part, shared ones once."""
    counted: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, ElasticLinear):
            weight, bias = module.active()
            counted[id(module.weight)] = weight.numel()
            if module.bias is not None and bias is not None:
                counted[id(module.bias)] = bias.numel()
    for parameter in model.parameters():
        counted.setdefault(id(parameter), parameter.numel())
    return sum(counted.values())


class ElasticModel:
    """A Hugging Face encoder of which every Subnet can be used, trained and extracted.

    :param model: a model of a known family, base or with a task head; used as it is, never copied.
    :param grid: the Subnets that training covers. Any other Subnet can be asked for as well.
    :param depth_rule: how a depth becomes layers, see `dynabert.subnet.DEPTH_RULES`.
    :param kept: layers of given depths, by depth; overrides the rule. Saved models carry it, so that a saved ``d0.75``
        never changes meaning.
    :raises SettingError: an unknown family, or a grid in which two Subnets are the same network.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        grid: SubnetGrid | None = None,
        *,
        depth_rule: DepthRule = "paper",
        kept: Mapping[float, tuple[int, ...]] | None = None,
    ) -> None:
        self.model = model
        self.family = family_of(model.config.model_type)
        self.shape = self.family.shape(model.config)
        self.described = Description.of(self.shape, grid or SubnetGrid(), depth_rule, kept)
        self._views: dict[Subnet, PreTrainedModel] = {}
        self._lock = Lock()
        self._pattern = share(model)

    @property
    def grid(self) -> SubnetGrid:
        """The Subnets that training covers."""
        return self.described.grid

    @property
    def depth_rule(self) -> DepthRule:
        """How a depth becomes layers, see `dynabert.subnet.DEPTH_RULES`."""
        return self.described.depth_rule

    def slices(self, subnet: Subnet) -> tuple[LayerSlice, ...]:
        """What a Subnet keeps of this encoder, one slice for each executed layer."""
        return self.described.slices(subnet)

    def at(self, subnet: Subnet) -> "PreTrainedModel":
        """The view of a Subnet: a plain module of the model's class that shares its weights. Cached; thread-safe.

        Its layers, hidden states and attentions are those of the Subnet: (batch, seq, hidden) for each kept layer, and
        (batch, heads kept, seq, seq). It starts in the model's own mode (training or not) and keeps its own.

        :raises SettingError: a Subnet of layers that this encoder does not have.
        """
        with self._lock:
            if subnet not in self._views:
                self._views[subnet] = self.make_view(self.slices(subnet))
            return self._views[subnet]

    def make_view(self, slices: tuple[LayerSlice, ...], *, linear: LinearFactory = ElasticLinear) -> "PreTrainedModel":
        """A new view of any slices, not cached, in the model's own mode; `linear` makes its cut linears.

        It is made from a copy of the model's modules that never runs: transformers hangs hooks on a model at its first
        request for hidden states, and a view copied meanwhile would have some of them twice.
        """
        view = make_view(self._pattern, self.family, slices, shape=self.shape, linear=linear)
        return view.train(self.model.training)

    def extract(self, subnet: Subnet, *, pad_heads: bool = False) -> "PreTrainedModel":
        """A small dense model with its own weights, equal to the view of a Subnet.

        Where all heads are kept it is a stock Hugging Face model. With fewer heads its class is the family's narrow one
        from `dynabert.modeling`, which loads with `dynabert.load`, with `Auto*` after ``import dynabert``, and with
        ``trust_remote_code=True`` where dynabert is not installed.

        :param pad_heads: keep the place of the heads that are cut, with weights of zero: the same answers from a stock
            model, but attention costs as much as with all heads.
        :raises SettingError: a Subnet that this encoder does not have.
        """
        from dynabert.modeling import small_model

        slices = self.slices(subnet)
        if not pad_heads:
            view = self.at(subnet)
            return small_model(view, active_state(view), slices=slices, shape=self.shape, subnet_name=subnet.name)
        wide = with_all_heads(slices, self.shape)
        view = self.make_view(wide)
        small = small_model(view, active_state(view), slices=wide, shape=self.shape, subnet_name=subnet.name)
        zero_other_heads(layers_of(small, self.family), self.family, slices, self.shape)
        return small

    def copy(self) -> "ElasticModel":
        """An independent copy, weights included: a teacher that stays as it is while this one trains."""
        return ElasticModel(copy.deepcopy(self.model), self.grid, depth_rule=self.depth_rule, kept=self.described.kept)

    def to(self, device: torch.device | str) -> None:
        """Move the model, in place. Views taken before are void: take them again with `at`."""
        with self._lock:
            self.model.to(device)  # type: ignore[arg-type]
            self._pattern = share(self.model)
            self._views.clear()

    def description(self) -> dict[str, object]:
        """What `elastic.json` holds: the format's version, the grid, the depth rule and the layers of each depth."""
        return self.described.to_dict()

    def save_pretrained(self, folder: str | Path, *, tokenizer: "PreTrainedTokenizerBase | None" = None) -> None:
        """Save to a Hugging Face folder of the full size, plus `elastic.json`.

        Rewiring is a permutation, so stock `from_pretrained` loads the full network from it. The folder appears whole
        or not at all.

        :param folder: where to; an earlier one is replaced.
        :param tokenizer: saved beside the model if given.
        """
        from dynabert.loading import save_model

        text = json.dumps(self.description(), indent=2)
        save_model(self.model, Path(folder), tokenizer=tokenizer, extra_files={ELASTIC: text})

    def push_to_hub(
        self,
        repo_id: str,
        *,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        private: bool | None = None,
        sweep: "Sweep | None" = None,
        dry_run: bool = False,
    ) -> "Upload":
        """Upload to a model repository of the Hugging Face hub, as `save_pretrained` writes it, with a model card.

        :param private: see `dynabert.hub.push_folder`.
        :param sweep: what was measured, for the card.
        :param dry_run: say what would be uploaded, and ask nothing of the hub.
        :return: what was, or would be, uploaded.
        :raises DynabertError: see `dynabert.hub.push_folder`.
        """
        from tempfile import TemporaryDirectory

        from dynabert.hub import push_folder
        from dynabert.model_card import elastic_card
        from dynabert.modeling import auto_class, head_of

        auto = auto_class(head_of(type(self.model).__name__, self.family) or "Model")
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder, tokenizer=tokenizer)
            card = elastic_card(self.described, self.family, auto_class=auto, sweep=sweep)
            (folder / CARD).write_text(card, encoding="utf-8")
            return push_folder(folder, repo_id, private=private, dry_run=dry_run)

    @classmethod
    def from_pretrained(cls, folder: str | Path, grid: SubnetGrid | None = None) -> "ElasticModel":
        """Load a saved elastic model, or make any checkpoint of a known family elastic.

        :param folder: a folder, or the name of a repository on the hub. Nothing that lies in it is executed.
        :param grid: the Subnets to cover; by default those in `elastic.json`, or the default grid without that file.
        :raises ModelFileError: a folder that is missing, damaged, or written by a later version.
        """
        from dynabert.loading import load
        from dynabert.model_files import resolve

        path = resolve(folder)
        model = load(path, head=None)
        description = path / ELASTIC
        if not description.exists():
            return cls(model, grid)
        saved = Description.read(description, family_of(model.config.model_type).shape(model.config), grid)
        return cls(model, saved.grid, depth_rule=saved.depth_rule, kept=saved.kept)


def active_state(view: nn.Module) -> dict[str, Tensor]:
    """The state dict of the small dense model that a view stands for: own copies, cut linears at their active size."""
    state = {name: tensor.detach().clone() for name, tensor in view.state_dict().items()}
    for name, module in view.named_modules():
        if isinstance(module, ElasticLinear):
            weight, bias = module.active()
            state[f"{name}.weight"] = weight.detach().clone(memory_format=torch.contiguous_format)
            if bias is not None:
                state[f"{name}.bias"] = bias.detach().clone()
    return state
