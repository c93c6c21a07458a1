"""Stages and recipes: a whole training plan as data. The loop that runs them is in `dynabert.distill`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

from dynabert.errors import SettingError, check_choices, one_of
from dynabert.losses import PUBLISHED, LossWeights, Reduction
from dynabert.seeds import derive_seed
from dynabert.subnet import Subnet, SubnetGrid


class Drawing(Protocol):
    """Says which Subnets a step trains: `Schedule` is one."""

    def subnets(self, grid: SubnetGrid, seed: int, step: int) -> tuple[Subnet, ...]:
        """The Subnets of one step, those of one width together: a pure function of its arguments."""


ScheduleKind = Literal["all", "sandwich", "light", "ladder"]
SCHEDULES: tuple[ScheduleKind, ...] = get_args(ScheduleKind)


@dataclass(frozen=True)
class Schedule:
    """Which Subnets a step trains.

    :param kind: ``all`` of them in every step (the paper); ``sandwich``: the largest, the smallest and a few drawn at
        random for each step (Yu and Huang, Universally Slimmable Networks, 2019); ``light``, ours: the smallest and a
        few drawn from all others, the largest among them, which begins as its own teacher and costs the most; or
        ``ladder``, ours: a deterministic sandwich of the largest, the smallest and one rung in between, which moves
        down by one in each step and begins again at the top, so that all Subnets in between are trained equally often.
    :param n_random: how many a sandwich draws, a light one too.
    """

    kind: ScheduleKind = "all"
    n_random: int = 2

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise SettingError(one_of("schedule", self.kind, SCHEDULES))
        if self.n_random < 0:
            raise SettingError(f"n_random {self.n_random} must be 0 or more")

    def subnets(self, grid: SubnetGrid, seed: int, step: int) -> tuple[Subnet, ...]:
        """The Subnets of one step, largest first, those of one width together: a pure function of its arguments."""
        ends = (grid.smallest,) if self.kind == "light" else (grid.largest, grid.smallest)
        middle = [subnet for subnet in grid if subnet not in ends]
        chosen = self._between(middle, seed, step)
        return tuple(subnet for subnet in grid if subnet in ends or subnet in chosen)

    def _between(self, middle: list[Subnet], seed: int, step: int) -> list[Subnet]:
        """Which of those that are not in every step this one trains."""
        if self.kind in ("sandwich", "light"):
            return sorted(middle, key=lambda subnet: derive_seed(seed, "sandwich", step, subnet.name))[: self.n_random]
        if self.kind == "ladder" and middle:
            return [sorted(middle, key=_share, reverse=True)[step % len(middle)]]
        return middle


def _share(subnet: Subnet) -> float:
    """The share of the encoder's FLOPs that a Subnet of the grid has, before heads and layers are rounded."""
    assert subnet.width is not None, "a grid has widths"
    return subnet.width * subnet.depth


@dataclass(frozen=True)
class Stage:
    """One training stage.

    :param subnets: ``full`` network alone, all ``widths`` at full depth, or the whole ``grid``.
    :param weights: of the loss terms.
    :param teacher: ``none``; the ``original`` fine-tuned network; or the network as the ``previous`` stage left it.
    :param teacher_width: the teacher at the ``matching`` width of each student (the paper's teacher assistant,
        Algorithm 3), or always ``full`` (what the published code does).
    :param epochs: passes over the training rows; fractions are allowed.
    :param lr: peak learning rate; it falls linearly to zero.
    """

    name: str
    subnets: Literal["full", "widths", "grid"]
    weights: LossWeights
    teacher: Literal["none", "original", "previous"] = "original"
    teacher_width: Literal["matching", "full"] = "full"
    schedule: Drawing = Schedule()
    epochs: float = 1.0
    lr: float = 2e-5

    def __post_init__(self) -> None:
        check_choices(self)
        if not (0 < self.epochs < float("inf") and 0 < self.lr < float("inf")):
            raise SettingError(f"stage {self.name!r}: epochs {self.epochs} and lr {self.lr} must be above 0")
        learns_from_teacher = self.weights.logits > 0 or self.weights.needs_states
        if self.teacher == "none" and learns_from_teacher:
            raise SettingError(f"stage {self.name!r} weighs teacher terms but has no teacher; set only `labels`")

    def grid(self, grid: SubnetGrid) -> SubnetGrid:
        """The part of the grid that this stage trains."""
        parts = {"full": SubnetGrid((1.0,), (1.0,)), "widths": grid.at_full_depth(), "grid": grid}
        return parts[self.subnets]

    def n_steps(self, steps_per_epoch: int) -> int:
        """Training steps, of which there is one at least."""
        return max(1, round(self.epochs * steps_per_epoch))

    def teacher_of(self, student: Subnet) -> Subnet:
        """The Subnet of the teacher that a student learns from."""
        return student.at_full_depth() if self.teacher_width == "matching" else Subnet()


@dataclass(frozen=True)
class Recipe:
    """A whole training plan: the stages in order, how losses are averaged, and which scores rewire the network.

    :param scores: a name in `dynabert.rewire.SCORES`.
    """

    name: str
    stages: tuple[Stage, ...]
    reduction: Reduction = Reduction()
    scores: str = "per-example"

    @property
    def lr(self) -> float:
        """The highest learning rate of its stages."""
        return max(stage.lr for stage in self.stages)

    def at_lr(self, lr: float) -> "Recipe":
        """The same plan with another highest learning rate; those of its stages keep their ratios."""
        if lr == self.lr:
            return self  # to the last bit
        stages = (replace(stage, lr=lr * (stage.lr / self.lr)) for stage in self.stages)
        return replace(self, stages=tuple(stages))

    def adjusted(
        self,
        *,
        epochs: float | None = None,
        lr: float | None = None,
        finetune: float | None = None,
        schedule: ScheduleKind | None = None,
    ) -> "Recipe":
        """The same plan with other epochs and learning rate in every stage, and a final fine-tuning stage if asked for.

        :param schedule: a name in `SCHEDULES`, for the stages that train the whole grid.
        :param finetune: epochs of a last stage on the labels alone (the paper's optional third stage); None for none.
        """
        stages = self.stages if finetune is None else (*self.stages, replace(FINETUNE, epochs=finetune))
        changed = tuple(
            replace(
                stage,
                epochs=stage.epochs if epochs is None or stage.name == FINETUNE.name else epochs,
                lr=stage.lr if lr is None else lr,
                schedule=stage.schedule if schedule is None or stage.subnets != "grid" else Schedule(schedule),
            )
            for stage in stages
        )
        return replace(self, stages=changed)


_LABELS_ALONE = LossWeights(logits=0, hidden=0, embeddings=0, labels=1)

TEACHER = Stage("teacher", "full", _LABELS_ALONE, teacher="none", epochs=3, lr=5e-5)
"""Ordinary fine-tuning of the full network: where a run starts when its encoder has no task head yet."""

FINETUNE = Stage("finetune", "grid", _LABELS_ALONE, teacher="none", epochs=3)
"""The paper's optional last stage: the labels alone, all Subnets."""

_WIDTH = Stage("width", "widths", LossWeights(logits=1, hidden=1, embeddings=0.1), epochs=3)
_DEPTH = Stage("depth", "grid", LossWeights(1, 10, 1), teacher="previous", teacher_width="matching", epochs=3)
_SANDWICH = Stage("sandwich", "grid", LossWeights(1, 10, 1), schedule=Schedule("sandwich"), epochs=10, lr=1e-4)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("default", (_SANDWICH,)),
        Recipe("two-stage", (_WIDTH, _DEPTH)),
        Recipe(
            "paper",
            (replace(_WIDTH, weights=LossWeights(1, 0.1, 0.1)), replace(_DEPTH, weights=LossWeights(1, 1, 1))),
            reduction=PUBLISHED,
            scores="total",
        ),
    )
}
"""`default`: one stage, whose steps each distil into the largest, the smallest and two random Subnets. Ten epochs cost
0.85 of the FLOPs of `paper`; at equal FLOPs the sizes are better (docs/decisions/0012).
`paper`: the two distillation stages of DynaBERT with its scores, reductions and loss weights, its learning rate 2e-5
and 3 epochs a stage (section 3.1 and the published defaults), the teacher of the second stage at the student's width.
Differs from the paper: no augmented rows (both of its stages learn from 10 to 30 rewritings of each row as well, made
as TinyBERT's), and batches are padded to their longest row, not to 128 tokens.
`two-stage`: the same with the repairs of `Reduction` and scores of each example; the hidden loss is a mean over about
ten layers instead of their sum, so its weight is ten times the paper's.
"""


def present_name(name: str, stages: Sequence[str]) -> str:
    """What a recipe is called now: `default` was `sandwich`, and `two-stage` was `default`, before the sandwich was.

    :param name: that it was saved with.
    :param stages: the names of its stages.
    """
    if name == "default" and "width" in stages:
        return "two-stage"
    return "default" if name == _SANDWICH.name else name


def recipe_of(name: str) -> Recipe:
    """The recipe of a name.

    :raises SettingError: an unknown name.
    """
    if name == _SANDWICH.name:
        raise SettingError(f"recipe {name!r} is called 'default' now; known: {', '.join(RECIPES)}")
    if name not in RECIPES:
        raise SettingError(one_of("recipe", name, RECIPES))
    return RECIPES[name]
