"""A model of a family that is not in the table is refused by one line that names the known families."""

import pytest
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from dynabert.elastic import ElasticModel
from dynabert.errors import SettingError
from dynabert.families import FAMILIES, family_of


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(SettingError) as caught:
        family_of("robberta")
    message = str(caught.value)
    assert "'robberta'" in message and "did you mean 'roberta'?" in message
    assert all(name in message for name in FAMILIES)
    assert "\n" not in message


def test_a_model_of_an_unknown_family_is_refused():
    config = DistilBertConfig(vocab_size=20, dim=16, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=8)
    with pytest.raises(SettingError) as caught:
        ElasticModel(DistilBertForSequenceClassification(config))
    assert "'distilbert'" in str(caught.value)
    assert all(name in str(caught.value) for name in FAMILIES)


def test_an_extracted_narrow_model_is_not_a_family_either():
    for family in FAMILIES.values():
        with pytest.raises(SettingError, match=family.model_type):
            family_of(family.narrow_model_type)
