"""An embedded corpus and a tiny encoder, so that the whole job runs with no download.

The rows are reviews written by a small grammar. A header names a reviewer and a thing ("Clara on the soup: ..."), one
sentence follows, and the label is what *that* reviewer thinks of *that* thing. Other people's opinions, opinions on
other things, negation, contrast, agreement and comparison stand in the way, so that counting words does not help. Rows
differ in how many steps of reading they need, and therefore larger networks get more of them right.
"""

import csv
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dynabert.errors import SettingError

LABELS = ("negative", "positive")
N_WORDS = range(8, 31)

_PEOPLE = ("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karin", "Leo")
_THINGS = (
    *("soup", "bread", "salad", "fish", "dessert", "coffee", "wine", "menu", "service", "kitchen"),
    *("room", "bed", "view", "lobby", "breakfast", "pool", "garden", "shower", "lift", "terrace"),
    *("plot", "music", "acting", "ending", "dialogue", "script", "lighting", "costume"),
    *("camera", "screen", "battery", "keyboard", "speaker", "charger", "manual", "warranty"),
)
_WORDS = {
    True: (
        *("good", "great", "superb", "lovely", "excellent", "charming", "pleasant", "delightful", "splendid", "fine"),
        *("wonderful", "impressive", "enjoyable", "brilliant", "satisfying", "admirable", "likeable", "terrific"),
    ),
    False: (
        *("bad", "poor", "awful", "dreadful", "horrible", "dull", "unpleasant", "disappointing", "shabby", "weak"),
        *("terrible", "mediocre", "tiresome", "clumsy", "annoying", "miserable", "sloppy", "dismal"),
    ),
}
_KEEPERS = (
    *("very {}", "truly {}", "quite {}", "rather {}", "a little {}", "somewhat {}", "simply {}", "really very {}"),
    *("nothing but {}", "never less than {}", "nothing short of {}", "nothing if not {}", "never anything but {}"),
)
_FLIPPERS = (
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
    *("{who} expected the {what} to be {first} but it proved {last}", "despite hearing that the {what} was {first} {who} found it {last}"),
    *("although the {what} first seemed {first} to {who} it proved {last}", "the {what} looked {first} but {who} left calling it {last}"),
    "{who} ended up calling the {what} {last} although it had looked {first}",
)
_ECHOES = {
    True: ("and {who} agreed", "as {who} could confirm", "and {who} could not agree more", "and {who} never disputed it"),
    False: ("but {who} disagreed", "but {who} took the opposite view", "and {who} could not agree", "but {who} disputed it"),
}
_LIKENESSES = {
    True: ("and the {what} was no different", "just like the {what}", "and the {what} was no exception"),
    False: ("quite unlike the {what}", "but the {what} was the opposite", "and the {what} was the exception"),
}
_RANKED = (
    *("{who} preferred the {best} to the {worst}", "for {who} the {best} beat the {worst}"),
    *("{who} ranked the {worst} below the {best}", "{who} liked the {worst} less than the {best}"),
    *("{who} would choose the {best} over the {worst}", "to {who} the {worst} was no match for the {best}"),
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


def _other(rng: random.Random, names: Iterable[str], *taken: str) -> str:
    return rng.choice([name for name in names if name not in taken])


def _how(rng: random.Random, good: bool) -> str:
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(_WORDS[good])
    if kind < 0.6:
        return rng.choice(_KEEPERS).format(rng.choice(_WORDS[good]))
    return rng.choice(_FLIPPERS).format(rng.choice(_WORDS[not good]))


def _claim(rng: random.Random, opinion: _Opinion) -> str:
    denied = rng.random() < 0.25
    form = rng.choice(_DENIED if denied else _STATED)
    return form.format(who=opinion.who, what=opinion.what, how=_how(rng, opinion.good != denied))


def _change(rng: random.Random, opinion: _Opinion) -> str:
    first, last = _how(rng, not opinion.good), _how(rng, opinion.good)
    return rng.choice(_CHANGED).format(who=opinion.who, what=opinion.what, first=first, last=last)


def _echo(rng: random.Random, opinion: _Opinion) -> str:
    agrees = rng.random() < 0.5
    heard = _Opinion(_other(rng, _PEOPLE, opinion.who), opinion.what, opinion.good == agrees)
    return f"{_claim(rng, heard)}, {rng.choice(_ECHOES[agrees]).format(who=opinion.who)}"


def _likeness(rng: random.Random, opinion: _Opinion) -> str:
    alike = rng.random() < 0.5
    model = _Opinion(opinion.who, _other(rng, _THINGS, opinion.what), opinion.good == alike)
    return f"{_claim(rng, model)}, {rng.choice(_LIKENESSES[alike]).format(what=opinion.what)}"


def _ranking(rng: random.Random, opinion: _Opinion) -> str:
    things = opinion.what, _other(rng, _THINGS, opinion.what)
    best, worst = things if opinion.good else reversed(things)
    return rng.choice(_RANKED).format(who=opinion.who, best=best, worst=worst)


_FRAMES = ((_claim, 4), (_change, 2), (_echo, 2), (_likeness, 2), (_ranking, 2))


def _distractor(rng: random.Random, target: _Opinion) -> str:
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(_FILLERS).format(how=rng.choice(_WORDS[rng.random() < 0.5]))
    who = target.who if kind < 0.5 else _other(rng, _PEOPLE, target.who)
    what = target.what if kind > 0.75 else _other(rng, _THINGS, target.what)
    return _claim(rng, _Opinion(who, what, rng.random() < 0.5))


def _write(rng: random.Random, good: bool) -> str:
    target = _Opinion(rng.choice(_PEOPLE), rng.choice(_THINGS), good)
    frames, weights = zip(*_FRAMES, strict=True)
    parts = [rng.choices(frames, weights)[0](rng, target)]
    parts += [_distractor(rng, target) for _ in range(rng.choice((0, 1, 1, 2)))]
    rng.shuffle(parts)
    body = parts[0] + "".join(rng.choice(_JOINTS) + part for part in parts[1:])
    return f"{target.who} on the {target.what}: {body}."


def generate(n_rows: int, seed: int) -> list[tuple[str, str]]:
    """(text, label)."""
    rng = random.Random(seed)
    rows: list[tuple[str, str]] = []
    seen = set()
    while len(rows) < n_rows:
        pair = [False, True]
        rng.shuffle(pair)
        for good in pair:
            while True:
                text = _write(rng, good)
                if len(text.split()) in N_WORDS and text not in seen:
                    break
            seen.add(text)
            rows.append((text, LABELS[good]))
    return rows[:n_rows]
