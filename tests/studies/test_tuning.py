"""How a rate is chosen, and what happens where training fails."""

import pytest

from dynabert.errors import NonFiniteError
from dynabert.studies.tuning import n_trainings, tuned

SCORES = {3e-5: 0.6, 1e-4: 0.7, 3e-4: 0.8, 9e-4: 0.75}


def choice(rates: tuple[float, ...], *, fails: tuple[float, ...] = ()) -> tuple[float, bool, list]:
    """The rate that is chosen of some, whether it is at an edge, and all trainings: here the rate and the seed."""
    trained = []

    def train(lr: float, seed: int) -> float:
        trained.append((lr, seed))
        if lr in fails:
            raise NonFiniteError(f"NaN at {lr:g}")
        return lr

    found = tuned(train, rates, (1, 2), score=SCORES.__getitem__)  # type: ignore[arg-type]
    assert found.trials == [found.lr, found.lr]
    return found.lr, found.at_edge, trained


@pytest.mark.parametrize("rates", [(1e-4,), (3e-5, 1e-4), (1e-4, 3e-4), (3e-5, 1e-4, 3e-4)])
def test_no_more_trainings_are_done_than_were_told(rates: tuple[float, ...]) -> None:
    done = len(set(choice(rates)[2]))
    assert done <= n_trainings(rates, (1, 2)) <= done + 1, "one beyond an end may not be needed"
    assert n_trainings(rates, (1, 2), choosers=2) == n_trainings(rates, (1, 2)) + 2 * (len(rates) > 1)


def test_one_more_rate_is_tried_beyond_an_end_that_is_best() -> None:
    assert choice((1e-4, 3e-4))[:2] == (3e-4, False)
    assert choice((3e-4, 9e-4), fails=(1e-4,))[:2] == (3e-4, False)
    assert choice((1e-4,)) == (1e-4, False, [(1e-4, 1), (1e-4, 1), (1e-4, 2)]), "of one rate nothing is tuned"


def test_a_rate_that_fails_is_told_and_not_chosen(caplog: pytest.LogCaptureFixture) -> None:
    assert choice((1e-4, 3e-4), fails=(9e-4,))[:2] == (3e-4, False)
    assert "learning rate 0.0009 is not chosen: NaN at 0.0009" in caplog.text
    assert choice((3e-5, 1e-4, 3e-4), fails=(3e-4,))[:2] == (1e-4, False)
    with pytest.raises(NonFiniteError, match=r"NaN at 0\.0001"):
        choice((1e-4, 3e-4), fails=(1e-4, 3e-4))
