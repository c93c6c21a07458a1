"""Energy of a call, told by counters as Linux has them."""

from pathlib import Path

import pytest

from dynabert import timing
from dynabert.energy import energy_counter, energy_of
from dynabert.timing import nothing, timings


class Processors:
    """A folder of counters, which a call moves."""

    def __init__(self, folder: Path, *microjoules: int, largest: int = 1000) -> None:
        self.files, self.largest = [], largest
        for number, value in enumerate(microjoules):
            zones = {f"intel-rapl:{number}": f"package-{number}", f"intel-rapl:{number}:0": "core"}
            for name, called in {**zones, "intel-rapl:9": "psys"}.items():
                (folder / name).mkdir(exist_ok=True)
                (folder / name / "name").write_text(f"{called}\n")
                (folder / name / "max_energy_range_uj").write_text(str(largest))
                (folder / name / "energy_uj").write_text(str(value))
            self.files.append(folder / f"intel-rapl:{number}" / "energy_uj")

    def use(self, microjoules: int) -> None:
        for file in self.files:
            file.write_text(str((int(file.read_text()) + microjoules) % self.largest))


def test_all_processors_count_and_begin_anew_at_the_end_of_their_range(tmp_path: Path) -> None:
    processors = Processors(tmp_path, 100, 900)
    counter = energy_counter(tmp_path)
    assert counter is not None and counter() == 0
    processors.use(200)  # the second goes over its end
    assert counter() == pytest.approx(0.4)
    processors.use(900)
    assert counter() == pytest.approx(2.2)


def test_a_call_costs_the_mean_of_many(tmp_path: Path) -> None:
    processors = Processors(tmp_path, 0, largest=10**9)
    counter = energy_counter(tmp_path)
    assert counter is not None
    ticks = iter(range(100))
    used = energy_of(lambda: processors.use(3000), counter, finish=nothing, clock=lambda: next(ticks) / 20)
    assert used == pytest.approx(3.0)


def test_a_counter_that_fails_later_tells_nothing(tmp_path: Path) -> None:
    processors = Processors(tmp_path, 0)
    counter = energy_counter(tmp_path)
    assert counter is not None
    processors.files[0].unlink()
    assert energy_of(lambda: None, counter, finish=nothing) is None


def test_a_machine_that_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert energy_counter(tmp_path) is None
    Processors(tmp_path, 5)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("")
    assert energy_counter(tmp_path) is None, "nothing that can be read"
    monkeypatch.setattr(timing, "energy_counter", lambda: None)
    ((one,),) = timings({"a": lambda _: None}, {(1, 2): None}, repeats=1).values()
    assert one.energy_mj is None


def test_a_gpu_is_not_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Processors(tmp_path, 0)
    monkeypatch.setattr(timing, "energy_counter", lambda: energy_counter(tmp_path))
    ((one,),) = timings({"a": lambda _: None}, {(1, 2): None}, repeats=1, on_cpu=False).values()
    assert one.energy_mj is None


def test_times_tell_it_where_the_machine_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processors = Processors(tmp_path, 0, largest=10**12)
    monkeypatch.setattr(timing, "energy_counter", lambda: energy_counter(tmp_path))
    calls = {"small": lambda _: processors.use(1000), "large": lambda _: processors.use(8000)}
    found = timings(calls, {(1, 8): None}, repeats=1)
    assert {name: times[0].energy_mj for name, times in found.items()} == pytest.approx({"small": 1.0, "large": 8.0})
