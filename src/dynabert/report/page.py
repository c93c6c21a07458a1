"""The page: plain HTML around the figures, everything it needs inside it."""

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import vl_convert

from dynabert.report.data import Contents
from dynabert.report.figure import Control, Figure, TextTable, theme, vega_lite_version

FONT = "system-ui, sans-serif"


def page_of(contents: Contents, figures: tuple[Figure, ...]) -> str:
    """The page as text."""
    title = f"dynabert report: {contents.name}"
    sections = [("summary", "Summary", _summary(contents))]
    sections += [(figure.name, figure.title, _figure(figure)) for figure in figures]
    if contents.left_out:
        sections.append(("left-out", "Left out", _list(contents.left_out)))
    return Template(_asset("page.html")).substitute(
        title=escape(title),
        css=_asset("page.css"),
        nav="\n".join(f'<li><a href="#{name}">{escape(head)}</a></li>' for name, head, _ in sections),
        sections="\n".join(
            f'<section id="{name}" aria-labelledby="{name}-title">\n'
            f'<h2 id="{name}-title">{escape(head)}</h2>\n{body}\n</section>'
            for name, head, body in sections
        ),
        data=_json(_data(contents, figures)),
        library=_library(),
        script=_asset("page.js"),
    )


def _asset(name: str) -> str:
    return (files("dynabert.report") / name).read_text(encoding="utf-8").strip()


@cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed as one script."""
    bundle: str = vl_convert.javascript_bundle(vl_version=vega_lite_version())  # type: ignore[call-arg] # wrong stub
    return bundle.replace("</script", "<\\/script")


def _json(value: Any) -> str:  # noqa: ANN401 (any nesting of plain values)
    """JSON that cannot end the script it stands in, whatever the texts say."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _data(contents: Contents, figures: tuple[Figure, ...]) -> dict[str, Any]:
    shown = {
        figure.name: {
            "spec": figure.spec,
            "data": figure.data,
            "controls": [
                {"several": control.several, "options": [option.params for option in control.options]}
                for control in figure.controls
            ],
        }
        for figure in figures
    }
    attention = contents.network[1]
    return {
        "figures": shown,
        "attention": None if attention is None else [asdict(text) for text in attention.texts],
        "light": theme(dark=False, font=FONT),
        "dark": theme(dark=True, font=FONT),
    }


def _figure(figure: Figure) -> str:
    controls = "\n".join(_control(figure.name, place, control) for place, control in enumerate(figure.controls))
    numbers = "\n".join(_table(table) for table in figure.tables)
    return f"""<p class="caption" id="{figure.name}-caption">{escape(figure.caption)}</p>
{f'<div class="controls">{controls}</div>' if controls else ""}
<figure aria-labelledby="{figure.name}-title" aria-describedby="{figure.name}-caption">
<div class="chart"></div>
</figure>
<details class="numbers"><summary>The numbers</summary>
{numbers}
</details>"""


def _control(figure: str, place: int, control: Control) -> str:
    if control.several:
        boxes = "".join(
            f'<label><input type="checkbox" data-control="{place}" value="{number}" checked>'
            f"{escape(option.text)}</label>"
            for number, option in enumerate(control.options)
        )
        return f"<fieldset><legend>{escape(control.label)}</legend>{boxes}</fieldset>"
    body = "".join(
        f'<option value="{number}">{escape(option.text)}</option>' for number, option in enumerate(control.options)
    )
    return (
        f"<label>{escape(control.label)}"
        f'<select id="{figure}-{place}" data-control="{place}" autocomplete="off">{body}</select></label>'
    )


def _table(table: TextTable) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in table.headers)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(text)}</td>" for text in row[1:])}</tr>'
        for row in table.rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.caption)}">'
        f"<table><caption>{escape(table.caption)}</caption><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
    )


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _summary(contents: Contents) -> str:
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _facts(contents))
    settings = json.dumps(contents.settings, indent=2, ensure_ascii=False)
    return (
        f'<dl>{entries}</dl>\n<details class="numbers"><summary>All settings</summary>'
        f'<pre tabindex="0">{escape(settings)}</pre></details>'
    )


def _facts(contents: Contents) -> Iterable[tuple[str, str]]:
    """What the run is, in the order of reading."""
    settings, sweep = contents.settings, contents.own
    plan = settings.get("fingerprint") or {}
    source = {name: value for name, value in (settings.get("source") or {}).items() if value is not None}
    if sweep is not None:
        context, machine = sweep.context, sweep.context.machine
        best = max(sweep.rows, key=lambda row: row.metric)
        yield "Task", f"{context.task}, {context.n_rows:,} validation rows"
        yield "Teacher", f"{context.metric} {context.reference:.4f}"
        yield "Best size", f"{best.subnet}: {context.metric} {best.metric:.4f}"
        yield "Measured", f"{context.date}, predictions in {context.precision}"
        instructions = f" ({machine.instructions})" if machine.instructions else ""
        yield "Machine", f"{machine.cpu}{instructions}; {machine.device}, {machine.n_threads} threads"
        yield "Versions", f"dynabert {machine.dynabert}, torch {machine.torch}, transformers {machine.transformers}"
        if (latency := context.latency) is not None:
            sizes = f"batch {latency.batch[0]}, {latency.seq[0]} tokens, median of {latency.repeats}"
            yield "Latency", f"{machine.engine or latency.engine} {latency.dtype}, {sizes}"
        yield "Fingerprint", context.fingerprint
    if "model" in settings:
        yield "Encoder", str(settings["model"])
    if source:
        yield (
            "Rows",
            " ".join(f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in source.items()),
        )
    yield from _plan(plan)


def _plan(plan: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The recipe in a line each: what was trained, and how."""
    stages = [plan.get("teacher"), *((plan.get("recipe") or {}).get("stages") or ())]
    for stage in stages:
        if isinstance(stage, dict):
            terms = ", ".join(f"{name} {weight:g}" for name, weight in (stage.get("weights") or {}).items() if weight)
            yield (
                f"Stage {stage.get('name')}",
                f"{stage.get('epochs'):g} epochs, learning rate {stage.get('lr'):g}; losses: {terms}",
            )
    names = (
        "batch_size",
        "max_tokens",
        "max_length",
        "seed",
        "precision",
        "warmup",
        "order",
        "depth_rule",
        "world_size",
    )
    found = [f"{name} {plan[name]}" for name in names if plan.get(name) is not None]
    if found:
        yield "Settings", ", ".join(found)
