"""What the documents link to is there, and the program of the guide and the README runs."""

import re
from pathlib import Path

import pytest
from helpers import tiny_model
from small_job import small_plan, write_job
from transformers import BertForSequenceClassification

from dynabert.loading import load, load_tokenizer, save_model
from dynabert.run import train
from dynabert.studies.size_exit import exits_of_run
from dynabert.subnet import Subnet

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")],
    key=lambda page: page.relative_to(ROOT).as_posix(),
)


def text_of(page: Path) -> str:
    """Without blocks of code, in which nothing is a heading or a link."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if link.startswith(("http:", "https:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def program(page: Path) -> str:
    """The blocks of Python of a page, one after the other."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert blocks
    return "\n".join(blocks)


def test_the_program_of_the_guide_and_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, source = write_job(tmp_path, n_layers=4)
    train(encoder, source, tmp_path / "runs" / "demo", plan=small_plan(), latency=None)
    exits_of_run(tmp_path / "runs" / "demo", subnets=[Subnet(0.5, 1.0)])
    config = tiny_model("bert", n_labels=2).config
    config.max_position_embeddings = 128  # as long as rows are timed
    model = BertForSequenceClassification(config).eval()
    save_model(model, tmp_path / "my-finetuned-bert", tokenizer=load_tokenizer(encoder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dynabert.data.load_task", lambda task: source.load()[1])
    names: dict[str, object] = {}
    exec(program(ROOT / "docs" / "guide.md") + program(ROOT / "README.md"), names)  # noqa: S102
    assert load("small").num_parameters() == names["elastic"].extract(names["chosen"]).num_parameters()
