"""Predictions in the order of row ids, what a Sweep says, the choice from it, its file, and latency."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import PAD_ID, VOCAB, tiny_batch, tiny_model

from dynabert.batches import Batch, Batches, Encoded
from dynabert.elastic import ElasticModel
from dynabert.errors import DataError, ModelFileError, SettingError
from dynabert.measure import (
    LatencySettings,
    Measurement,
    Sweep,
    Timing,
    labels_of,
    latencies,
    measure,
    predict,
    random_inputs,
    selection_score,
)
from dynabert.recipes import RECIPES
from dynabert.subnet import Subnet
from dynabert.tasks import TASKS, metric_of
from dynabert.timing import interleaved_ms

QUICK = LatencySettings(seq=(16,), repeats=2)
MNLI, STSB = TASKS["mnli"], TASKS["stsb"]


def encoded(n: int = 40, n_labels: int = 3, seed: int = 0) -> Encoded:
    """Rows of 2 to 12 tokens whose ids are neither from 0 nor in order."""
    random = np.random.default_rng(seed)
    tokens = [random.integers(2, VOCAB, random.integers(2, 13)).astype(np.int32) for _ in range(n)]
    scores = random.random(n).astype(np.float32) * 5
    labels = scores if n_labels == 1 else random.integers(0, n_labels, n)
    return Encoded(tokens, None, labels, random.permutation(n) * 3 + 7)


def batches(rows: Encoded, batch_size: int = 20) -> Batches:
    return Batches(rows, batch_size=batch_size, seed=0, pad_id=PAD_ID, shuffle=False)


@pytest.fixture(scope="module")
def elastic() -> ElasticModel:
    return ElasticModel(tiny_model("bert"))


@pytest.fixture(scope="module")
def sweep(elastic: ElasticModel) -> Sweep:
    return measure(elastic, batches(encoded()), task=MNLI, latency=QUICK)


def test_predict_gives_each_row_once_in_the_order_of_ids(elastic: ElasticModel) -> None:
    rows = encoded()
    view = elastic.at(Subnet(0.5, 0.5))
    alone = [view(input_ids=torch.from_numpy(t.astype(np.int64))[None]).logits[0].tolist() for t in rows.input_ids]
    expected = [alone[i] for i in np.argsort(rows.ids)]
    np.testing.assert_allclose(predict(view, batches(rows, batch_size=7)), expected, atol=1e-5)


def test_labels_have_the_order_of_the_predictions() -> None:
    rows = encoded()
    assert rows.labels is not None
    assert labels_of(batches(rows)).tolist() == rows.labels[np.argsort(rows.ids)].tolist()


@pytest.mark.parametrize("training", [True, False])
def test_predict_runs_in_eval_mode_and_restores_the_mode(training: bool) -> None:
    model = tiny_model("bert", dropout=0.5).train(training)
    first, second = predict(model, [tiny_batch()]), predict(model, [tiny_batch()])
    assert np.array_equal(first, second)
    assert model.training is training
    assert all(part.training is training for part in model.modules())


def test_predict_restores_the_mode_after_a_failure() -> None:
    model = tiny_model("bert").train()
    with pytest.raises(SettingError, match="BertModel has no task head"):
        predict(model.base_model, [tiny_batch()])
    assert model.base_model.training


def test_predict_and_labels_refuse_what_cannot_be_measured(elastic: ElasticModel) -> None:
    with pytest.raises(DataError, match="no rows"):
        predict(elastic.model, [])
    with pytest.raises(SettingError, match="no labels"):
        measure(elastic, batches(replace(encoded(), labels=None)), task=MNLI)
    with pytest.raises(DataError, match="do not fit task sst2"):
        measure(elastic, batches(encoded()), task=TASKS["sst2"], latency=None)
    with pytest.raises(SettingError, match="unknown precision 'fp8'"):
        measure(elastic, batches(encoded()), task=MNLI, precision="fp8")
    with pytest.raises(SettingError, match="at least one"):
        measure(elastic, batches(encoded()), task=MNLI, subnets=[], latency=None)


def test_sweep_holds_what_each_subnet_scores_and_costs(elastic: ElasticModel, sweep: Sweep) -> None:
    held = batches(encoded())
    labels, full = labels_of(held), predict(elastic.model, held)
    assert [row.subnet for row in sweep.rows] == [subnet.name for subnet in elastic.grid]
    for row in sweep.rows:
        subnet = Subnet.parse(row.subnet)
        logits = predict(elastic.at(subnet), held)
        assert row.quality.metrics == metric_of(MNLI, labels, logits)
        assert row.quality.metric_low <= row.metric <= row.quality.metric_high
        assert row.quality.kept == row.metric / sweep.context.reference
        assert row.quality.agreement == np.mean(full.argmax(1) == logits.argmax(1))
        small = elastic.extract(subnet)
        assert row.cost.n_params == small.num_parameters()
        assert (row.n_layers, row.of_layers) == (small.config.num_hidden_layers, 4)
        stock = type(small).__module__.startswith("transformers")
        assert row.loads_with == ("transformers" if stock else "dynabert or trust_remote_code")
        assert row.cost.latency_ms is not None and row.cost.latency_ms > 0
    first = sweep.rows[0]
    assert (first.quality.kept, first.quality.agreement) == (1, 1)
    # 4 layers: 2 x (q, k, v, o and two feed-forward matrices of 64 x 64, and two products of 16 x 64) x 16 tokens
    assert first.cost.flops == 4 * 2 * 16 * (6 * 64 * 64 + 2 * 16 * 64)


def test_context_says_what_was_measured_and_where(sweep: Sweep) -> None:
    context = sweep.context
    assert (context.task, context.metric, context.n_rows, context.precision) == ("mnli", "accuracy", 40, "fp32")
    assert context.latency == QUICK and context.seq_len == 16
    assert context.machine.cpu and context.machine.device == "cpu"
    assert context.machine.n_threads == torch.get_num_threads()
    assert context.machine.torch == torch.__version__


def test_fingerprint_follows_weights_rows_and_layers() -> None:
    def of(seed: int = 0, rows: int = 0, depth: float = 1.0) -> str:
        held = batches(encoded(8, seed=rows))
        model = ElasticModel(tiny_model("bert", seed=seed))
        return measure(model, held, task=MNLI, subnets=[Subnet(1, depth)], latency=None).context.fingerprint

    assert of() == of()
    assert len({of(), of(seed=1), of(rows=1), of(depth=0.5)}) == 4


def test_rows_are_compared_with_the_reference_given(elastic: ElasticModel) -> None:
    held = batches(encoded())
    teacher = np.eye(3)[labels_of(held)]  # always right
    result = measure(elastic, held, task=MNLI, reference=teacher, latency=None, subnets=[Subnet(0.5)])
    (row,) = result.rows
    assert result.context.reference == 1
    assert row.quality.kept == row.metric == row.quality.agreement
    assert row.cost.latency_ms is None and result.context.latency is None and result.context.seq_len == 128


def test_regression_agrees_by_correlation() -> None:
    elastic = ElasticModel(tiny_model("roberta", n_labels=1))
    held = batches(encoded(n_labels=1))
    result = measure(elastic, held, task=STSB, subnets=[Subnet(), Subnet(0.5)], latency=None)
    full, half = (predict(elastic.at(Subnet(width)), held)[:, 0] for width in (1.0, 0.5))
    assert list(result.rows[1].quality.metrics) == ["pearson", "spearman"]
    assert result.rows[1].quality.agreement == pytest.approx(np.corrcoef(full, half)[0, 1])
    flat = measure(elastic, held, task=STSB, subnets=[Subnet(0.5)], latency=None, reference=full)
    assert flat.rows[0].quality.agreement == pytest.approx(result.rows[1].quality.agreement)


def test_kept_share_of_a_reference_without_skill_is_unknown(elastic: ElasticModel) -> None:
    held = batches(encoded())
    wrong = np.eye(3)[(labels_of(held) + 1) % 3]
    result = measure(elastic, held, task=MNLI, reference=wrong, latency=None, subnets=[Subnet()])
    assert result.rows[0].quality.kept is None
    assert " - " in result.table()


def test_bf16_predictions_are_near_those_of_fp32_and_not_the_same() -> None:
    elastic = ElasticModel(tiny_model("bert", n_labels=1))
    held = batches(encoded(n_labels=1))
    settings = {"subnets": [Subnet()], "latency": None, "reference": predict(elastic.model, held)}
    exact, low = (measure(elastic, held, task=STSB, precision=name, **settings) for name in ("fp32", "bf16"))
    assert (exact.context.precision, low.context.precision) == ("fp32", "bf16")
    assert exact.rows[0].quality.agreement == pytest.approx(1, abs=1e-12)
    assert 0.99 < low.rows[0].quality.agreement < 1 - 1e-9
    assert low.rows[0].cost == exact.rows[0].cost


def test_progress_counts_subnets_and_repeats(elastic: ElasticModel) -> None:
    told: list[tuple[str, int, int]] = []
    chosen = [Subnet(), Subnet(0.5)]
    settings = {"subnets": chosen, "latency": QUICK, "progress": lambda *step: told.append(step)}
    measure(elastic, batches(encoded(8)), task=MNLI, **settings)
    assert told == [(what, done, 2) for what in ("predict", "latency") for done in (0, 1, 2)]


@pytest.mark.parametrize("stage", RECIPES["two-stage"].stages, ids=lambda stage: stage.name)
def test_selection_score_is_the_mean_over_the_subnets_of_the_stage(elastic: ElasticModel, stage) -> None:
    held = batches(encoded())
    labels = labels_of(held)
    scores = [
        metric_of(MNLI, labels, predict(elastic.at(subnet), held))["accuracy"] for subnet in stage.grid(elastic.grid)
    ]
    assert len(scores) == {"width": 4, "depth": 12}[stage.name]
    assert selection_score(held, MNLI, precision="fp32")(elastic, stage) == pytest.approx(np.mean(scores))
    assert selection_score(held, MNLI, precision="bf16")(elastic, stage) == pytest.approx(np.mean(scores), abs=0.05)


def test_selection_score_sees_weights_that_changed_and_changes_nothing() -> None:
    elastic = ElasticModel(tiny_model("bert", dropout=0.3).train())
    stage = RECIPES["two-stage"].stages[0]
    evaluate = selection_score(batches(encoded()), MNLI, precision="bf16")
    before = evaluate(elastic, stage)
    assert evaluate(elastic, stage) == before  # dropout is off
    assert elastic.model.training and all(p.grad is None for p in elastic.model.parameters())
    with torch.no_grad():
        for weight in elastic.model.classifier.parameters():
            weight.neg_()
    assert evaluate(elastic, stage) != before


def test_selection_score_refuses_an_unknown_precision_at_once() -> None:
    with pytest.raises(SettingError, match="unknown precision 'half'"):
        selection_score(batches(encoded()), MNLI, precision="half")


# --- latency


def test_calls_take_turns_and_are_warm() -> None:
    now, made = 0.0, []
    takes = {Subnet(): [9, 9, 3, 9, 1, 9, 2], Subnet(0.5): [9, 9, 5, 9, 5, 9, 8]}

    def call(subnet: Subnet) -> None:
        nonlocal now
        made.append(subnet)
        now += takes[subnet].pop(0)

    calls = {subnet: lambda subnet=subnet: call(subnet) for subnet in takes}
    assert interleaved_ms(calls, 3, finish=lambda: None, clock=lambda: now) == {Subnet(): 2000, Subnet(0.5): 5000}
    a, b = takes
    assert made == [a, b, *[a, a, b, b] * 3]


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_latency_leaves_the_network_as_it_is(family: str, dtype: str) -> None:
    elastic = ElasticModel(tiny_model(family))
    before = {name: tensor.clone() for name, tensor in elastic.model.state_dict().items()}
    settings = LatencySettings(batch=(2,), seq=(8,), repeats=1, dtype=dtype)
    times = latencies(elastic, [Subnet(), Subnet(0.5, 0.5)], settings=settings)
    assert list(times) == [Subnet(), Subnet(0.5, 0.5)] and all(timing.median_ms > 0 for (timing,) in times.values())
    after = elastic.model.state_dict()
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )


@pytest.mark.parametrize(("family", "longest"), [("bert", 40), ("roberta", 38)])
def test_latency_takes_the_longest_length_and_refuses_longer(family: str, longest: int) -> None:
    elastic = ElasticModel(tiny_model(family))
    assert (
        latencies(elastic, [Subnet()], settings=LatencySettings(seq=(longest,), repeats=1))[Subnet()][0].median_ms > 0
    )
    with pytest.raises(SettingError, match=f"{longest + 1} tokens is too long .* takes {longest}; lower seq"):
        measure(elastic, batches(encoded()), task=MNLI, latency=LatencySettings(seq=(longest + 1,)))


def test_latency_is_measured_without_padding_tokens() -> None:
    (inputs,) = random_inputs(tiny_model("bert"), LatencySettings(batch=(40,), seq=(40,))).values()
    assert set(inputs["input_ids"].flatten().tolist()) == set(range(VOCAB)) - {PAD_ID}
    assert inputs["attention_mask"].all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": (0,)},
        {"batch": (1, 1, 8)},
        {"seq": (4, 0)},
        {"seq": ()},
        {"seq": (8, 4, 8)},
        {"repeats": 0},
        {"dtype": "fp8"},
        {"engine": "abacus"},
    ],
)
def test_latency_settings_are_checked(wrong: dict[str, object]) -> None:
    (name,) = wrong
    with pytest.raises(SettingError, match=name):
        LatencySettings(**wrong)


# --- choosing


def row(
    name: str, metric: float, n_params: int, flops: int, latency_ms: float | None, like: Measurement
) -> Measurement:
    quality = replace(like.quality, metrics={"accuracy": metric})
    return replace(
        like,
        subnet=name,
        quality=quality,
        cost=replace(like.cost, n_params=n_params, flops=flops, latency_ms=latency_ms),
    )


@pytest.fixture
def choice(sweep: Sweep) -> Sweep:
    like = sweep.rows[0]
    return replace(
        sweep,
        rows=(
            row("w1-d1", 0.90, 100, 40, 9.0, like),
            row("w0.5-d1", 0.90, 60, 20, 6.0, like),
            row("w1-d0.5", 0.85, 50, 20, 4.0, like),
            row("w0.5-d0.5", 0.80004, 30, 10, 2.50001, like),
        ),
    )


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        ({}, "w0.5-d1"),  # the best two are equal: the cheaper
        ({"max_params": 59}, "w1-d0.5"),
        ({"max_params": 50}, "w1-d0.5"),  # a limit may be reached
        ({"max_flops": 19}, "w0.5-d0.5"),
        ({"max_latency_ms": 4.5}, "w1-d0.5"),
        ({"min_metric": 0.85}, "w1-d0.5"),  # alone: the cheapest that reaches it
        ({"min_metric": 0.8, "max_params": 60}, "w0.5-d1"),
    ],
)
def test_pick_takes_the_best_within_the_limits(choice: Sweep, limits: dict[str, float], name: str) -> None:
    assert choice.pick(**limits).subnet == name


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_params": 20}, "no Subnet fits max_params 20; the nearest is w0.5-d0.5: set max_params to 30 for it"),
        ({"max_latency_ms": 2}, "the nearest is w0.5-d0.5: set max_latency_ms to 2.5001"),
        ({"min_metric": 0.95}, "no Subnet fits min_metric 0.95; the nearest is w1-d1: set min_metric to 0.9000"),
        ({"max_params": 45, "min_metric": 0.84}, "the nearest is w0.5-d0.5: set min_metric to 0.8000"),
        ({"max_params": 5, "max_flops": 5}, "set max_params to 30 and max_flops to 10 for it"),
    ],
)
def test_pick_names_the_limit_and_the_nearest_row(choice: Sweep, limits: dict[str, float], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        choice.pick(**limits)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_choosing_by_a_latency_that_is_not_there_is_refused(choice: Sweep) -> None:
    rows = tuple(replace(row, cost=replace(row.cost, latency_ms=None)) for row in choice.rows)
    without = replace(choice, rows=rows)
    for choose in (lambda: without.pick(max_latency_ms=5), lambda: without.front("latency_ms")):
        with pytest.raises(SettingError, match="no latency_ms; measure again with latency"):
            choose()
    assert without.pick(min_metric=0.85).subnet == "w1-d0.5"
    with pytest.raises(SettingError, match="unknown cost 'param'"):
        choice.front("param")


# --- file and table


def test_json_gives_the_same_sweep_back(sweep: Sweep, tmp_path: Path) -> None:
    without = replace(sweep, context=replace(sweep.context, latency=None))
    for one in (sweep, without):
        one.to_json(tmp_path / "sweep.json")
        assert Sweep.from_json(tmp_path / "sweep.json") == one


@pytest.mark.parametrize(("seq", "expected"), [((16, 64), 16), (None, 128)])
def test_json_of_the_second_version_counted_flops_at_the_first_length(
    sweep: Sweep, tmp_path: Path, seq: tuple[int, ...] | None, expected: int
) -> None:
    latency = seq and LatencySettings(seq=seq)
    saved = replace(sweep, context=replace(sweep.context, latency=latency)).to_dict()
    del saved["context"]["seq_len"], saved["context"]["machine"]["instructions"]
    for row in saved["rows"]:
        for timing in row["timings"]:
            del timing["energy_mj"]
    (tmp_path / "sweep.json").write_text(json.dumps({**saved, "format_version": 2}))
    assert Sweep.from_json(tmp_path / "sweep.json").context.seq_len == expected


def test_json_of_the_fourth_version_did_not_know_the_instructions(sweep: Sweep, tmp_path: Path) -> None:
    saved = sweep.to_dict()
    del saved["context"]["machine"]["instructions"]
    (tmp_path / "sweep.json").write_text(json.dumps({**saved, "format_version": 4}))
    machine = Sweep.from_json(tmp_path / "sweep.json").context.machine
    assert machine.instructions is None and not machine.differences(sweep.context.machine), "unknown is no difference"
    saved["context"]["precision"] = "int8"
    (tmp_path / "sweep.json").write_text(json.dumps({**saved, "format_version": 4}))
    machine = Sweep.from_json(tmp_path / "sweep.json").context.machine
    assert machine.differences(sweep.context.machine), "of int8 it is one: by them its weights are written"


def test_processors_of_one_name_differ_by_their_instructions(sweep: Sweep) -> None:
    machine = sweep.context.machine
    assert machine.instructions, "known here"
    other = replace(machine, instructions="AVX512 vnni bf16 and more")
    assert machine.differences(other) == (f"instructions {machine.instructions} there, AVX512 vnni bf16 and more here",)


def test_json_rows_are_flat(sweep: Sweep, tmp_path: Path) -> None:
    sweep.to_json(tmp_path / "sweep.json")
    saved = json.loads((tmp_path / "sweep.json").read_text())
    assert list(saved) == ["format_version", "context", "rows"]
    nested = [name for name, value in saved["rows"][0].items() if isinstance(value, (dict, list))]
    assert nested == ["metrics", "timings"]
    assert saved["rows"][0]["n_params"] == sweep.rows[0].cost.n_params


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("format_version",), 6, "newer than 5: update dynabert"),
        (("format_version",), "1", "format_version"),
        (("extra",), 1, "extra"),
        (("rows",), [], "at least one row"),
        (("rows",), {}, "list of rows"),
        (("rows", 1), 3, "row 1 is not a table"),
        (("rows", 0, "n_params"), 1.5, "row 0: n_params is not of type int"),
        (("rows", 0, "n_params"), True, "row 0: n_params is not of type int"),
        (("rows", 0, "kept"), "1", "kept is not of type float"),
        (("rows", 0, "agreement"), None, "agreement is not of type float"),
        (("rows", 0, "more"), 1, "row 0 lacks or should not have more"),
        (("rows", 0, "metrics"), {}, "metrics is not a table of numbers"),
        (("rows", 0, "metrics"), {"f1": 0.5}, "main metric is not accuracy"),
        (("context", "machine"), None, "context: machine is not a table"),
        (("context", "latency", "dtype"), "fp8", "unknown dtype of torch 'fp8'"),
        (("context", "reference"), "0.5", "context: reference is not of type float"),
    ],
)
def test_json_of_another_form_is_refused(
    sweep: Sweep, tmp_path: Path, place: tuple, value: object, message: str
) -> None:
    path = tmp_path / "sweep.json"
    sweep.to_json(path)
    saved = json.loads(path.read_text())
    inner = saved
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(saved))
    with pytest.raises(ModelFileError, match=message) as caught:
        Sweep.from_json(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"rows": 1e999}', "{", '{"format_version": 1}'])
def test_json_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ModelFileError, match=r"sweep\.json"):
        Sweep.from_json(tmp_path / "sweep.json")
    with pytest.raises(ModelFileError, match="missing"):
        Sweep.from_json(tmp_path / "none.json")


def test_number_too_large_for_a_float_is_refused(sweep: Sweep, tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    sweep.to_json(path)
    saved = json.loads(path.read_text())
    saved["context"]["reference"] = "HUGE"
    path.write_text(json.dumps(saved).replace('"HUGE"', "1e999"))
    with pytest.raises(ModelFileError, match=r"is not valid JSON \(1e999 is too large a number\)"):
        Sweep.from_json(path)


def test_table_has_a_line_for_each_subnet(choice: Sweep) -> None:
    lines = choice.table().splitlines()
    found = [line.split() for line in lines if line.strip().startswith("w0.5-d1 ")]
    quality = choice.rows[1].quality
    interval = [f"{quality.metric_low:.3f}", "to", f"{quality.metric_high:.3f}"]
    assert found == [["w0.5-d1", "4/4", "0.9000", *interval, "100.0", "100.0", "0.0", "0.00", "6.00"]]
    text = " ".join(choice.table().split())
    assert "mnli: accuracy on 40 rows" in text and "1 x 16 tokens" in text and "median of 2" in text


def test_times_of_every_shape_are_shown_in_a_table_of_their_own(sweep: Sweep) -> None:
    settings = LatencySettings(batch=(1, 8), seq=(16, 32, 64))
    times = tuple(
        Timing(batch, seq, median_ms=batch * seq / 4, p95_ms=batch * seq / 2, spread=0.1)
        for batch, seq in settings.shapes
    )
    cost = replace(sweep.rows[0].cost, timings=times, file_bytes=12_300_000, peak_bytes=None)
    many = Sweep((replace(sweep.rows[0], cost=cost),), replace(sweep.context, latency=settings))
    _, *first = [line.split() for line in many.table().splitlines() if line.strip().startswith("w1-d1 ")]
    rest = first.pop()  # six shapes are too many for 120 columns
    assert [" ".join(line) for line in first] == [
        "w1-d1 4.00 8.00 8.00 16.00 16.00 32.00 32.00 64.00 64.00 128.00 250 12.3 -"
    ]
    assert rest == ["w1-d1", "128.00", "256.00"]
    assert max(map(len, many.table().splitlines())) <= 120
    assert "spread" not in many.table()
    one = many.at(seq=64)
    assert one.to_cost_tables() == [], "one shape, in PyTorch: the first table says it"
    machine = replace(one.context.machine, engine="openvino 2026")
    assert len(replace(one, context=replace(one.context, machine=machine)).to_cost_tables()) == 1


def test_times_that_spread_widely_are_called_doubtful(sweep: Sweep) -> None:
    def spreading(*shares: float) -> Sweep:
        rows = [
            replace(row, cost=replace(row.cost, timings=(Timing(1, 16, 2.0, 3.0, share),)))
            for row, share in zip(sweep.rows, shares, strict=False)
        ]
        return replace(sweep, rows=tuple(rows))

    assert spreading(0.05, 0.2).doubt() == ""
    doubt = spreading(0.05, 0.3, 0.41).doubt()
    assert doubt.startswith("2 of 3 times spread") and f"{sweep.rows[2].subnet} at 1 x 16, 41%" in doubt
    assert spreading(0.3).table().endswith("with more --repeats\n")


def test_batches_may_come_from_a_generator(elastic: ElasticModel, sweep: Sweep) -> None:
    def stream():
        yield from batches(encoded())

    subnets = [Subnet(), Subnet(0.5)]
    result = measure(elastic, stream(), task=MNLI, subnets=subnets, latency=None)
    assert result.rows[0].quality == sweep.rows[0].quality
    assert isinstance(next(stream()), Batch)


@pytest.mark.parametrize("settings", [{"engine": "openvino"}, {"engine": "openvino", "dtype": "int8"}])
def test_the_latency_of_another_form_is_not_measured_of_the_network_in_memory(settings):
    with pytest.raises(SettingError, match=r"latency of openvino .* use measure_deployed"):
        measure(ElasticModel(tiny_model("bert")), [], task=TASKS["mnli"], latency=LatencySettings(**settings))
