"""An embedded corpus and a small encoder, so that the whole job runs with no download.

The rows are reviews written by a small grammar. A header names a person and a thing ("Clara on the soup: ..."), one
sentence follows, and the label is what *that* person thinks of *that* thing. Other people's opinions, opinions on other
things, negation, contrast, agreement, likeness and comparison stand in between, so that counting words does not help.
Rows differ in how many steps of reading they need, and so larger networks get more of them right.
"""

import csv
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dynabert.errors import SettingError
from dynabert.folders import publish_folder
from dynabert.subnet import EncoderShape

if TYPE_CHECKING:
    from dynabert.plan import Plan, Source

LABELS = ("negative", "positive")

N_WORDS = range(8, 31)
"""Words a text may have, header included."""

SHAPE = EncoderShape(n_layers=4, n_heads=4, head_dim=32, hidden=128, n_neurons=512)
"""The encoder: large enough for the corpus, small enough to be trained from nothing on two cores."""

MAX_LENGTH = 64
"""Tokens at most: the longest row has fewer."""

_VOCAB_SIZE = 1000  # more than the corpus has words, so that every frequent word is one token
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_PEOPLE = ("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Hugo")
_THINGS = (
    *("soup", "bread", "coffee", "service", "room", "view"),
    *("pool", "garden", "plot", "music", "camera", "battery"),
)
_GOOD = (
    *("good", "great", "superb", "lovely", "excellent", "charming", "pleasant", "delightful", "splendid", "fine"),
    *("wonderful", "impressive", "enjoyable", "brilliant", "satisfying", "admirable", "likeable", "terrific"),
)
_BAD = (
    *("bad", "poor", "awful", "dreadful", "horrible", "dull", "unpleasant", "disappointing", "shabby", "weak"),
    *("terrible", "mediocre", "tiresome", "clumsy", "annoying", "miserable", "sloppy", "dismal"),
)
_KEEPING = (
    *("very {}", "truly {}", "quite {}", "rather {}", "a little {}", "somewhat {}", "simply {}", "really very {}"),
    *("nothing but {}", "never less than {}", "nothing short of {}", "nothing if not {}", "never anything but {}"),
)
_TURNING = (
    *("not {}", "not at all {}", "never {}", "hardly {}", "far from {}", "anything but {}", "by no means {}"),
    *("not very {}", "not even a little {}", "scarcely {}", "nowhere near {}"),
)
_STATED = (
    *("{who} found the {what} {how}", "{who} thought the {what} was {how}", "to {who} the {what} seemed {how}"),
    *("for {who} the {what} was {how}", "the {what} struck {who} as {how}", "{who} insisted that the {what} was {how}"),
)
_DENIED = (
    *("{who} denied that the {what} was {how}", "{who} would never call the {what} {how}"),
    *("{who} doubted that the {what} was {how}", "{who} laughed at the idea that the {what} was {how}"),
    "nobody could persuade {who} that the {what} was {how}",
)
_CHANGED = (
    "{who} expected the {what} to be {first} but it proved {last}",
    "despite hearing that the {what} was {first} {who} found it {last}",
    "although the {what} first seemed {first} to {who} it proved {last}",
    "the {what} looked {first} but {who} left calling it {last}",
    "{who} ended up calling the {what} {last} although it had looked {first}",
)
_ECHOES = {
    True: (
        "and {who} agreed",
        "as {who} could confirm",
        "and {who} could not agree more",
        "and {who} never doubted it",
    ),
    False: ("but {who} disagreed", "but {who} felt the opposite", "and {who} could not agree", "but {who} doubted it"),
}
_LIKENESSES = {
    True: ("and the {what} was no different", "just like the {what}", "and the {what} was no exception"),
    False: ("quite unlike the {what}", "but the {what} was the opposite", "but the {what} was the exception"),
}
_RANKED = (
    *("{who} preferred the {best} to the {worst}", "for {who} the {best} beat the {worst}"),
    *("{who} ranked the {worst} below the {best}", "{who} liked the {worst} less than the {best}"),
)
_FILLERS = (
    *("it was a {how} evening", "the weather was {how}", "the drive had been {how}", "the week had been {how}"),
    *("the crowd looked {how}", "nobody stayed for long", "the tickets came by post", "there was a queue outside"),
)
_JOINTS = (", and ", ", while ", "; ", ", and meanwhile ")


@dataclass(frozen=True)
class _Opinion:
    who: str
    what: str
    good: bool


def _word(rng: random.Random, good: bool) -> str:
    return rng.choice(_GOOD if good else _BAD)


def _how(rng: random.Random, good: bool) -> str:
    """A word, perhaps strengthened or weakened, or negated: in all it means `good`."""
    kind = rng.random()
    if kind < 0.5:
        return _word(rng, good)
    if kind < 0.7:
        return rng.choice(_KEEPING).format(_word(rng, good))
    return rng.choice(_TURNING).format(_word(rng, not good))


def _plain(rng: random.Random, opinion: _Opinion, _who: str, _what: str) -> str:
    """Said outright: the rows that teach what the words mean."""
    how = rng.choice(("{}", "{}", *_KEEPING)).format(_word(rng, opinion.good))
    return rng.choice(_STATED).format(who=opinion.who, what=opinion.what, how=how)


def _claim(rng: random.Random, opinion: _Opinion, _who: str = "", _what: str = "") -> str:
    """Said by one who holds it, sometimes as the denial of the opposite, which itself may be negated."""
    denied = rng.random() < 0.15
    form = rng.choice(_DENIED if denied else _STATED)
    return form.format(who=opinion.who, what=opinion.what, how=_how(rng, opinion.good != denied))


def _change(rng: random.Random, opinion: _Opinion, _who: str, _what: str) -> str:
    """First the opposite, which does not count."""
    first, last = _how(rng, not opinion.good), _how(rng, opinion.good)
    return rng.choice(_CHANGED).format(who=opinion.who, what=opinion.what, first=first, last=last)


def _echo(rng: random.Random, opinion: _Opinion, who: str, _what: str) -> str:
    """Agreement or disagreement with somebody else."""
    agrees = rng.random() < 0.5
    heard = _claim(rng, _Opinion(who, opinion.what, opinion.good == agrees))
    return f"{heard}, {rng.choice(_ECHOES[agrees]).format(who=opinion.who)}"


def _likeness(rng: random.Random, opinion: _Opinion, _who: str, what: str) -> str:
    """The same as, or the opposite of, what the person thinks of something else."""
    alike = rng.random() < 0.5
    model = _claim(rng, _Opinion(opinion.who, what, opinion.good == alike))
    return f"{model}, {rng.choice(_LIKENESSES[alike]).format(what=opinion.what)}"


def _ranking(rng: random.Random, opinion: _Opinion, _who: str, what: str) -> str:
    """Better or worse than something else, with no word of praise or blame."""
    best, worst = (opinion.what, what) if opinion.good else (what, opinion.what)
    return rng.choice(_RANKED).format(who=opinion.who, best=best, worst=worst)


_Frame = Callable[[random.Random, _Opinion, str, str], str]

_FRAMES: tuple[tuple[_Frame, int, tuple[int, ...]], ...] = (
    (_plain, 5, (0,)),
    (_claim, 5, (0, 1)),
    (_change, 3, (0, 0, 1)),
    (_echo, 3, (0, 0, 1)),
    (_likeness, 3, (0, 0, 1)),
    (_ranking, 1, (0,)),
)
"""How the opinion is given, how often, and how many asides may stand around it."""


def _aside(rng: random.Random, opinion: _Opinion, who: str, what: str) -> str:
    """Something that does not count: small talk, another person's opinion, or an opinion on another thing."""
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(_FILLERS).format(how=_word(rng, rng.random() < 0.5))
    same_person, same_thing = kind < 0.5, kind > 0.7
    unasked = _Opinion(opinion.who if same_person else who, opinion.what if same_thing else what, rng.random() < 0.5)
    return _claim(rng, unasked)


def _write(rng: random.Random, good: bool) -> str:
    """One text. Every person and thing in it plays one part, so no opinion contradicts another."""
    people, things = rng.sample(_PEOPLE, 3), rng.sample(_THINGS, 3)
    opinion = _Opinion(people[0], things[0], good)
    ((frame, _, n_asides),) = rng.choices(_FRAMES, [weight for _, weight, _ in _FRAMES])
    parts = [frame(rng, opinion, people[1], things[1])]
    if rng.choice(n_asides):
        parts.append(_aside(rng, opinion, people[2], things[2]))
        rng.shuffle(parts)
    return f"{opinion.who} on the {opinion.what}: {rng.choice(_JOINTS).join(parts)}."


def generate(n_rows: int, seed: int) -> list[tuple[str, str]]:
    """Rows of (text, name of the label): all texts differ, and each pair of rows has one of either label.

    :param n_rows: how many.
    :param seed: the rows are a function of it; fewer rows of a seed are the first of more.
    """
    rng = random.Random(seed)
    rows: list[tuple[str, str]] = []
    texts: set[str] = set()
    while len(rows) < n_rows:
        first = rng.random() < 0.5
        for good in (first, not first):
            text = _write(rng, good)
            while text in texts or len(text.split()) not in N_WORDS:
                text = _write(rng, good)
            texts.add(text)
            rows.append((text, LABELS[good]))
    return rows[:n_rows]


def write_corpus(folder: str | Path, *, n_train: int, n_validation: int, seed: int) -> None:
    """Write ``train.csv`` and ``validation.csv`` with the columns text and label; no text stands in both.

    :param folder: appears whole; an earlier one is replaced.
    :raises StorageError: disk full, no permission or an I/O error.
    """
    rows = generate(n_validation + n_train, seed)
    with publish_folder(folder) as temporary:
        for name, part in (("validation", rows[:n_validation]), ("train", rows[n_validation:])):
            with (temporary / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows((("text", "label"), *part))


def write_encoder(folder: str | Path, texts: Iterable[str], *, seed: int, shape: EncoderShape = SHAPE) -> None:
    """Write a BERT with random weights and no task head, and a WordPiece tokenizer trained on the texts.

    :param folder: becomes an ordinary Hugging Face folder; an earlier one is replaced.
    :param texts: what the vocabulary is made from.
    :param seed: of the weights.
    :param shape: sizes of the encoder.
    :raises StorageError: disk full, no permission or an I/O error.
    """
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    from dynabert.loading import save_model

    tokenizer = BertTokenizer(vocab=_vocabulary(texts), model_max_length=MAX_LENGTH)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        intermediate_size=shape.n_neurons,
        max_position_embeddings=128,  # more than any text has, for the usual latency at 128 tokens
        hidden_dropout_prob=0.0,  # a pass or two over rows that all differ: there is nothing to memorise
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config)
    save_model(model, folder, tokenizer=tokenizer)


def _vocabulary(texts: Iterable[str]) -> dict[str, int]:
    """WordPieces by id, the special tokens first."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    texts = list(texts)
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The letters are given in their order, because the trainer's own order differs from one call to the next.
    letters = sorted(set("".join(texts).lower()) - {" "})
    known = [*_SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(vocab_size=_VOCAB_SIZE, special_tokens=known, show_progress=False)
    pieces.train_from_iterator(texts, trainer)
    return pieces.get_vocab()


@dataclass(frozen=True)
class DemoSettings:
    """Sizes and hyper-parameters of the demo: a few minutes on two cores.

    :param n_train: rows of ``train.csv``; a tenth of them is held out to choose with.
    :param n_validation: rows of ``validation.csv``.
    :param teacher_epochs: passes of the full network over the labels, from random weights.
    :param teacher_lr: its peak learning rate.
    :param epochs: passes of each stage of the recipe.
    :param lr: their peak learning rate.
    :param batch_size: rows of a step.
    :param warmup: share of the steps of a stage over which the learning rate rises.
    """

    n_train: int = 24_000
    n_validation: int = 1_000
    teacher_epochs: float = 2.0
    teacher_lr: float = 5e-4
    epochs: float = 0.8
    lr: float = 5e-4
    batch_size: int = 32
    warmup: float = 0.1

    def __post_init__(self) -> None:
        for name in ("n_train", "n_validation"):
            if getattr(self, name) < 10:
                raise SettingError(f"{name} {getattr(self, name)} is too few rows for a run; give at least 10")


def prepare(
    out: str | Path,
    *,
    seed: int = 0,
    settings: DemoSettings = DemoSettings(),
) -> "tuple[Path, Source, Plan]":
    """Write the corpus and the encoder beside a run folder: what `dynabert.run.train` needs to fill it.

    They are a function of the seed and the settings, so that an interrupted run finds the same ones again.

    :param out: the run folder; ``<out>-data`` and ``<out>-encoder`` are written beside it.
    :return: the encoder's folder, where the rows are, and what to do.
    """
    from dynabert.distill import Training
    from dynabert.plan import Batching, Plan, Source
    from dynabert.recipes import RECIPES, TEACHER
    from dynabert.saved import Saved

    plan = Plan(
        recipe=RECIPES["default"].adjusted(epochs=settings.epochs, lr=settings.lr),
        teacher=replace(TEACHER, epochs=settings.teacher_epochs, lr=settings.teacher_lr),
        training=Training(seed=seed, precision="fp32", warmup=settings.warmup),
        batching=Batching(settings.batch_size, max_length=MAX_LENGTH),
    )
    if (Path(out) / "run.json").exists():
        former = Saved.of(out).plan
        if (former.recipe, former.teacher, former.training.seed) != (plan.recipe, plan.teacher, seed):
            raise SettingError(
                f"{out} is a run of another seed or recipe than this demo's; give another --out, or delete that folder"
            )
    data, encoder = (Path(f"{out}-{part}") for part in ("data", "encoder"))
    write_corpus(data, n_train=settings.n_train, n_validation=settings.n_validation, seed=seed)
    source = Source(train=data / "train.csv", validation=data / "validation.csv", text="text", label="label")
    write_encoder(encoder, (text for text, _ in generate(settings.n_train, seed)), seed=seed)
    return encoder, source, plan
