"""What is told while a run trains: how far it is, and when all of it will be done."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console
from rich.progress import Progress

from dynabert.hooks import StepReport
from dynabert.progress import FIRST_STEPS, Bars, Eta
from dynabert.recipes import RECIPES, TEACHER
from dynabert.workload import PlannedStage

STAGES = (PlannedStage("teacher", 100, 3.0), PlannedStage("width", 100, 10.0), PlannedStage("depth", 200, 20.0))
WIDTH, DEPTH = RECIPES["two-stage"].stages


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def take(eta, clock, steps, seconds):
    for done in steps:
        clock.now += seconds
        eta.stepped(done + 1)


def make_eta():
    clock = Clock()
    eta = Eta(clock)
    eta.planned(STAGES)
    return eta, clock


def test_the_eta_counts_the_stages_to_come_by_their_flops():
    eta, clock = make_eta()
    eta.started("teacher", 100, 0)
    assert eta.remaining_s() is None
    take(eta, clock, range(50), 3.0)  # a second for each FLOP
    assert eta.remaining_s() == pytest.approx(50 * 3 + 100 * 10 + 200 * 20)
    assert eta.elapsed_s == pytest.approx(150)


def test_a_new_stage_goes_by_the_pace_so_far_and_then_by_its_own():
    eta, clock = make_eta()
    eta.started("teacher", 100, 0)
    take(eta, clock, range(100), 3.0)
    eta.started("width", 100, 0)
    take(eta, clock, range(FIRST_STEPS - 1), 100.0)  # slow first steps do not make the estimate jump
    assert eta.remaining_s() == pytest.approx((101 - FIRST_STEPS) * 10 + 200 * 20)
    take(eta, clock, range(FIRST_STEPS - 1, 100), 20.0)
    pace = (100.0 * (FIRST_STEPS - 1) + 20.0 * (101 - FIRST_STEPS)) / 1000
    assert eta.remaining_s() == pytest.approx(200 * 20 * pace)


def test_a_resumed_run_has_the_pace_of_this_process_alone():
    whole, resumed = make_eta(), make_eta()
    for eta, clock in (whole, resumed):
        eta.started("depth", 200, 0 if eta is whole[0] else 150)
        take(eta, clock, range(0 if eta is whole[0] else 150, 190), 2.0)
    assert resumed[0].remaining_s() == pytest.approx(whole[0].remaining_s()) == pytest.approx(20)
    assert resumed[0].elapsed_s == pytest.approx(80)


def test_time_spent_on_evaluations_is_in_the_pace():
    eta, clock = make_eta()
    eta.started("depth", 200, 0)
    take(eta, clock, range(100), 1.0)
    clock.now += 50
    assert eta.remaining_s() == pytest.approx(150)


def test_a_stage_that_nobody_planned_counts_alone():
    clock = Clock()
    eta = Eta(clock)
    eta.started("some", 40, 0)
    take(eta, clock, range(10), 2.0)
    assert eta.remaining_s() == pytest.approx(60)


def test_a_training_of_fewer_stages_can_follow_one_of_more():
    eta, clock = make_eta()
    for name, n_steps, _ in (("teacher", 100, 0), ("width", 100, 0), ("depth", 200, 0)):
        eta.started(name, n_steps, 0)
        take(eta, clock, range(n_steps), 1.0)
    eta.planned((PlannedStage("sandwich", 100, 2.0),))
    eta.started("sandwich", 100, 0)
    assert eta.remaining_s() is None and eta.elapsed_s == 0
    take(eta, clock, range(50), 2.0)
    assert eta.remaining_s() == pytest.approx(100)


def test_an_evaluation_is_a_line_with_the_time_gone_and_left():
    shown, clock = StringIO(), Clock()
    with Progress("{task.description} {task.fields[eta]}", console=Console(file=shown, width=200)) as progress:
        bars = Bars(progress, Eta(clock))
        bars.planned(STAGES[1:])
        bars.started(WIDTH, 100, 0)
        for step in range(50):
            clock.now += 60
            bars.stepped(StepReport("width", step, 100, 1e-5, 1.0, 64, 0))
        bars.evaluated(WIDTH, 50, 0.81234, True)
        assert progress.tasks[0].fields["eta"] == "eta 7:30:00"
    line = next(line for line in shown.getvalue().splitlines() if "0.8123" in line)
    assert line == "width: step 50, mean metric over its sizes 0.8123 (best so far); 0:50:00 elapsed, eta 7:30:00"


def test_the_teacher_is_planned_too():
    assert replace(TEACHER, epochs=0.5).n_steps(100) == 50
    assert replace(TEACHER, epochs=1e-9).n_steps(100) == 1
