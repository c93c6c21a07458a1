"""What `elastic.json` holds: the trained grid, and the layers that each depth keeps. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from dynabert.errors import ModelFileError, SettingError, one_of
from dynabert.files import read_json
from dynabert.subnet import DEPTH_RULES, DepthRule, EncoderShape, LayerSlice, Subnet, SubnetGrid, kept_layers

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Description:
    """The sizes of an elastic model.

    :param shape: the full encoder.
    :param grid: the Subnets that training covers.
    :param depth_rule: how a depth becomes layers, see `dynabert.subnet.DEPTH_RULES`.
    :param kept: the layers of each depth of the grid, and of others that are not as the rule says.
    """

    shape: EncoderShape
    grid: SubnetGrid
    depth_rule: DepthRule
    kept: Mapping[float, tuple[int, ...]]

    @classmethod
    def of(
        cls,
        shape: EncoderShape,
        grid: SubnetGrid,
        depth_rule: DepthRule = "paper",
        kept: Mapping[float, tuple[int, ...]] | None = None,
    ) -> "Description":
        """The description of an encoder.

        :param kept: layers of given depths, by depth; overrides the rule.
        :raises SettingError: a grid in which two Subnets are the same network, or layers that are not there.
        """
        grid.check(shape, depth_rule)
        layers = {depth: kept_layers(depth, shape.n_layers, depth_rule) for depth in grid.depths}
        for depth, given in (kept or {}).items():
            _check_layers(depth, given, shape.n_layers)
            layers[depth] = tuple(given)
        return cls(shape, grid, depth_rule, layers)

    @classmethod
    def read(cls, path: Path, shape: EncoderShape, grid: SubnetGrid | None = None) -> "Description":
        """The description of a saved encoder.

        :param path: its `elastic.json`.
        :param shape: the encoder.
        :param grid: other Subnets to cover than the saved ones.
        :raises ModelFileError: not such a file, one of a later format, or one that does not fit the encoder.
        :raises SettingError: a grid, of those given, that does not fit it.
        """
        saved_grid, depth_rule, kept = parse_description(path)
        try:
            return cls.of(shape, grid or saved_grid, depth_rule, kept)
        except SettingError as error:
            if grid is not None:
                raise
            raise ModelFileError(f"{path} does not fit its model: {error}") from error

    def slices(self, subnet: Subnet) -> tuple[LayerSlice, ...]:
        """What a Subnet keeps of this encoder, one slice for each executed layer.

        :raises SettingError: a Subnet of layers that this encoder does not have.
        """
        if subnet.layers is None and subnet.depth in self.kept:
            n_heads, n_neurons = subnet.counts(self.shape)
            return tuple(LayerSlice(layer, n_heads, n_neurons) for layer in self.kept[subnet.depth])
        return subnet.slices(self.shape, self.depth_rule)

    def in_grid(self, subnet: Subnet) -> Subnet | None:
        """The Subnet of the grid that is the same network, by whatever name; None where that was not trained."""
        slices = self.slices(subnet)
        return next((trained for trained in self.grid if self.slices(trained) == slices), None)

    def to_dict(self) -> dict[str, object]:
        """What `elastic.json` holds: the format's version, the grid, the depth rule and the layers of each depth."""
        return {
            "format_version": FORMAT_VERSION,
            "widths": list(self.grid.widths),
            "depths": list(self.grid.depths),
            "depth_rule": self.depth_rule,
            "layers": {repr(depth): list(layers) for depth, layers in self.kept.items()},
        }


def _check_layers(depth: float, layers: tuple[int, ...], n_layers: int) -> None:
    """Refuse layers of a depth that are no ascending, distinct indices of layers."""
    indices = all(type(layer) is int and 0 <= layer < n_layers for layer in layers)
    if not layers or not indices or list(layers) != sorted(set(layers)):
        raise SettingError(
            f"depth {depth} keeps layers {list(layers)}; give ascending, distinct ones from 0 to {n_layers - 1}"
        )


def parse_description(path: Path) -> tuple[SubnetGrid, DepthRule, dict[float, tuple[int, ...]]]:
    """Read an `elastic.json`: its grid, depth rule, and the layers of each depth.

    :raises ModelFileError: not such a file, or one of a later format.
    """
    saved = read_json(path)
    try:
        version = saved["format_version"]
        if version != FORMAT_VERSION:
            raise ModelFileError(f"{path} has format {version}; this version reads {FORMAT_VERSION}: update dynabert")
        grid = SubnetGrid(tuple(saved["widths"]), tuple(saved["depths"]))
        rule = saved["depth_rule"]
        if not isinstance(rule, str) or rule not in DEPTH_RULES:
            raise SettingError(one_of("depth rule", rule, DEPTH_RULES))
        return grid, cast(DepthRule, rule), {float(depth): tuple(layers) for depth, layers in saved["layers"].items()}
    except ModelFileError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(
            f"{path} is not a description of an elastic model ({error}); save the model again"
        ) from error
