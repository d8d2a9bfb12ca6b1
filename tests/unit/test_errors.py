"""Errors travel between processes and say what they are."""

from __future__ import annotations

import pickle

import pytest

from embedder import errors

KINDS = [errors.ConfigError, errors.DataError, errors.LabelError, errors.ModelError, errors.BundleError]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_survive_pickling_with_their_message(kind):
    copy = pickle.loads(pickle.dumps(kind("file.jsonl: what is wrong; what to do")))
    assert type(copy) is kind
    assert str(copy) == "file.jsonl: what is wrong; what to do"


@pytest.mark.parametrize("kind", KINDS)
def test_errors_that_a_user_can_cause_have_one_base(kind):
    assert issubclass(kind, errors.EmbedderError)
