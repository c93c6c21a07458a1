from pathlib import Path

import pytest
import torch
from small_job import write_encoder

from dynabert.errors import DataError, ModelFileError, SettingError
from dynabert.loading import load, load_tokenizer, save_model
from dynabert.predict import predict_lines


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_encoder(folder / "encoder")
    model = load(folder / "encoder", n_labels=2)
    model.config.id2label = {0: "bad", 1: "good"}
    save_model(model, folder / "classifier", tokenizer=load_tokenizer(folder / "encoder"))
    save_model(
        load(folder / "encoder", problem="regression"), folder / "scorer", tokenizer=load_tokenizer(folder / "encoder")
    )
    return folder


def test_each_line_gets_what_the_model_says_of_it_alone(model_dir: Path) -> None:
    lines = ["film is warm", "", "plot is flat number 3\n", "cast is dull\tscene is bright"]
    found = list(predict_lines(model_dir / "classifier", lines, batch_size=2))
    assert [prediction.text for prediction in found] == [line.strip() for line in lines if line]
    model, tokenizer = load(model_dir / "classifier"), load_tokenizer(model_dir / "classifier")
    for prediction in found:
        parts = prediction.text.split("\t")
        inputs = tokenizer(*[[part] for part in parts], return_tensors="pt")
        with torch.inference_mode():
            best = model(**inputs).logits.softmax(-1)[0].max(-1)
        assert prediction.label == ("bad", "good")[int(best.indices)]
        assert prediction.score == pytest.approx(float(best.values), abs=1e-5)


def test_a_regression_gives_scores_without_labels(model_dir: Path) -> None:
    (found,) = predict_lines(model_dir / "scorer", ["film is warm\tfilm is witty"])
    assert found.label is None and isinstance(found.score, float)


def test_three_texts_in_a_line_are_refused(model_dir: Path) -> None:
    with pytest.raises(DataError, match="3 tab-separated"):
        list(predict_lines(model_dir / "classifier", ["a\tb\tc"]))


def test_an_encoder_without_a_head_is_refused(model_dir: Path) -> None:
    with pytest.raises(ModelFileError, match="no classification head"):
        list(predict_lines(model_dir / "encoder", ["film"]))


def test_one_text_and_a_pair_are_not_mixed(model_dir: Path) -> None:
    with pytest.raises(DataError, match="one kind at a time"):
        list(predict_lines(model_dir / "classifier", ["film is warm", "film is warm\tplot is flat"]))


def test_a_long_text_is_cut_to_what_the_model_takes(model_dir: Path) -> None:
    (found,) = predict_lines(model_dir / "classifier", ["film is warm " * 200])
    assert found.label in ("good", "bad")


@pytest.mark.parametrize("line", ["film\0", "film \udcff"])
def test_what_is_no_text_is_named_by_its_line(model_dir: Path, line: str) -> None:
    with pytest.raises(DataError, match="line 2 holds a NUL or bytes"):
        list(predict_lines(model_dir / "classifier", ["film is warm", line]))


def test_lines_that_cannot_be_decoded_are_bad_data(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"film is warm\n\xff\n")
    with (tmp_path / "lines").open(encoding="utf-8") as lines, pytest.raises(DataError, match="UTF-8"):
        list(predict_lines(model_dir / "classifier", lines))


def test_calls_take_the_threads_that_are_asked_for(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watched(folder: Path, **settings: object) -> torch.nn.Module:
        model = load(folder, **settings)
        model.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
        return model

    monkeypatch.setattr("dynabert.predict.load", watched)
    before = torch.get_num_threads()
    list(predict_lines(model_dir / "classifier", ["film is warm"], n_threads=before + 1))
    assert seen == [before + 1] and torch.get_num_threads() == before
    with pytest.raises(SettingError, match="threads 0 must be 1 or more"):
        list(predict_lines(model_dir / "classifier", ["film is warm"], n_threads=0))
