"""The commands that ask what a method is worth: compare, ablate, exits, attention."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from dynabert.cli.options import (
    Budget,
    Device,
    Json,
    Limit,
    Plot,
    Run,
    Runs,
    Seeds,
    StudiedRecipe,
    lines_of,
    names_of,
    numbers_of,
    print_json,
)
from dynabert.errors import SettingError


def compare(
    runs: Runs,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: dynabert-cascade, deebert, fastbert, layerdrop, layerdrop-0.5, layerdrop-masked, "
            "layerdrop-validated, first-layers, first-layers-distilled, alone; all by default.",
            show_default=False,
        ),
    ] = None,
    ours: Annotated[
        str, typer.Option(help="What they are compared with: dynabert, its sizes, or dynabert-cascade.")
    ] = "dynabert",
    seeds: Seeds = 1,
    lrs: Annotated[
        str | None,
        typer.Option(
            help="Learning rates to tune over, one more beyond an end that is best; by default the recipe's alone.",
            show_default=False,
        ),
    ] = None,
    budget: Budget = 1.0,
    limit: Limit = None,
    recipe: StudiedRecipe = None,
    device: Device = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Train other methods beside a run: same teachers, same rows, same training FLOPs, paired by row and seed.

    Early exit on the teacher, each input by itself: deebert, fastbert; their ramps learn at ten times the rate. One
    network of all depths, whose layers are skipped in training at a rate of 0.2: layerdrop, or of 0.5: layerdrop-0.5;
    of which every other layer is kept, or those that the select rows choose: layerdrop-validated; or which skips in a
    masked-language-model phase as well: layerdrop-masked. Several networks that share the budget: first-layers,
    fine-tuned, or first-layers-distilled; every size distilled for itself: alone. And dynabert-cascade: a size answers
    what it is sure of, a larger one the rest; nothing is trained.

    Each method's size or threshold is chosen on the select rows, at half and at a quarter of the full network's FLOPs.
    Interrupted? Run the same command again: finished trainings are kept, and DynaBERT's go on where they stopped; the
    training of another method that was under way begins anew. The table, in RUN/studies/compare.json and the report,
    is of this call alone: name all methods that belong in it, those of earlier calls cost nothing.
    """
    from dynabert.studies.compare import ALL
    from dynabert.studies.compare import compare as study
    from dynabert.studies.compare_figure import figure
    from dynabert.studies.drawing import check_figure, save_chart

    if plot is not None:
        check_figure(plot)
    chosen = ALL if methods is None else names_of(methods)
    settings: dict[str, Any] = {"n_seeds": seeds, "budget": budget, "limit": limit, "recipe": recipe, "device": device}
    result = _studied(partial(study, *runs, methods=chosen, ours=ours, **settings), lrs)
    _print(result, as_json=as_json)
    if plot is not None:
        save_chart(figure(result), plot)


def ablate(
    runs: Runs,
    factors: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: rewiring, distillation, assistant, teacher-width, schedule, finetune, depth-rule, "
            "recipe, learning-rate; all by default. One variant of a factor: rewiring=random.",
            show_default=False,
        ),
    ] = None,
    seeds: Seeds = 3,
    lrs: Annotated[
        str | None,
        typer.Option(
            help="Learning rates to tune over, one more beyond an end that is best; by default a third of the "
            "recipe's, the recipe's, three times it.",
            show_default=False,
        ),
    ] = None,
    budget: Budget = 1.0,
    limit: Limit = None,
    recipe: StudiedRecipe = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Say what each ingredient is worth: change one factor of a run at a time, at equal training FLOPs.

    Every variant trains from the same teachers with the learning rate that is best for it on the select rows, and is
    paired with the recipe by row and seed. Interrupted? Run the same command again, and it goes on. The table, in
    RUN/studies/ablate.json and the report, is of this call alone, and so is the correction of its p values: name all
    factors that belong in it, those of earlier calls cost nothing.
    """
    from dynabert.studies.ablate import ablate as study
    from dynabert.studies.factors import ALL_FACTORS

    chosen = ALL_FACTORS if factors is None else names_of(factors)
    settings: dict[str, Any] = {"n_seeds": seeds, "budget": budget, "limit": limit, "recipe": recipe, "device": device}
    _print(_studied(partial(study, *runs, factors=chosen, **settings), lrs), as_json=as_json)


def _studied(study: Callable[..., Any], lrs: str | None) -> Any:  # noqa: ANN401 (a Comparison or an Ablation)
    """Make a study, with bars."""
    from dynabert.progress import progress_bars

    rates = () if lrs is None else numbers_of("lrs", lrs)
    with progress_bars() as bars:
        return study(lrs=rates, hooks=bars)


def _print(result: Any, *, as_json: bool) -> None:  # noqa: ANN401 (what a study found)
    if as_json:
        print_json(result.to_dict())
    else:
        typer.echo(result.table(), nl=False)


def exits(
    run: Run,
    cascade: Annotated[
        bool,
        typer.Option(
            "--cascade", help="No ramps and no training: a size answers what it is sure of, the full network the rest."
        ),
    ] = False,
    subnets: Annotated[
        str | None,
        typer.Option(
            help="Sizes, comma-separated: w1-d1,w0.5-d1; by default every width at full depth, of a cascade the "
            "narrowest at every depth."
        ),
    ] = None,
    agreements: Annotated[
        str,
        typer.Option(help="Shares of new rows that shall get the full network's answer, with 95 % confidence."),
    ] = "0.99,0.98,0.95",
    ramps: Annotated[
        str | None,
        typer.Option(
            help="fastbert: they attend to all tokens and learn from the size's own answers; deebert: they read the "
            "first token and learn from the labels. fastbert by default.",
            show_default=False,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of the ramps; by default ten times that of the run's recipe.", show_default=False
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Training FLOPs of a size's ramps, as a share of the run's; 0.1 by default.", show_default=False
        ),
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Let easy inputs leave early: ramps on the sizes of a run, or a cascade; both agree with its full network.

    Interrupted? Run the same command again: the ramps of every size that was finished are kept. The table, in
    RUN/studies and the report, is of this call alone: name all sizes that belong in it.
    """
    from dynabert.progress import progress_bars
    from dynabert.studies.size_exit import cascades_of_run, exits_of_run
    from dynabert.subnet import Subnet

    given = (("ramps", ramps), ("lr", lr), ("budget", budget))
    of_ramps: dict[str, Any] = {name: value for name, value in given if value is not None}
    if cascade and of_ramps:
        raise SettingError(f"{' and '.join(f'--{name}' for name in of_ramps)}: of ramps, which a cascade has not")

    chosen = () if subnets is None else tuple(map(Subnet.parse, names_of(subnets)))
    shares = numbers_of("agreements", agreements)
    with progress_bars() as bars:
        if cascade:
            result = cascades_of_run(run, subnets=chosen, agreements=shares, device=device)
        else:
            result = exits_of_run(run, subnets=chosen, agreements=shares, hooks=bars, device=device, **of_ramps)
    _print(result, as_json=as_json)


def attention(
    run: Run,
    text: Annotated[
        list[str] | None, typer.Option(help="A text to study instead, or a file of texts; may be given several times.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Validation rows to study, drawn at random.")] = 200,
    threshold: Annotated[
        float, typer.Option(help="Similarity from which on a pattern counts as reproduced, in (0, 1).")
    ] = 0.85,
    out: Annotated[Path | None, typer.Option(help="Also write the result to this JSON file.")] = None,
    plot: Plot = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Compare the attention of every size with the teacher's: how many of its patterns do the remaining heads keep?

    What validation rows say is kept in the run, where `dynabert report` finds it.
    """
    from dynabert.progress import progress_bars
    from dynabert.studies.attention import attention_of_run
    from dynabert.studies.attention_figure import figure
    from dynabert.studies.drawing import check_figure, check_folder, save_chart

    if plot is not None:
        check_figure(plot)
    if out is not None:
        check_folder(out)
    with progress_bars() as bars:
        study = attention_of_run(
            run,
            texts=None if text is None else lines_of(text),
            n_rows=rows,
            threshold=threshold,
            progress=bars.measuring,
            device=device,
        )
    _print(study, as_json=as_json)
    if out is not None:
        study.to_json(out)
    if plot is not None:
        save_chart(figure(study), plot)
