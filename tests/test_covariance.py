"""The second moment against a plain sum, its cache, and corpora that cannot be used."""

import sys
import types

import pytest
import torch

from jacobian_lab import covariance
from jacobian_lab.covariance import load_corpus, second_moments
from jacobian_lab.errors import InputError

LAYERS = (1, 3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JACOBIAN_LAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    lines = [f"Document {n} says that the Eiffel Tower is in Paris, {'and so on ' * (n % 7)}." for n in range(30)]
    path.write_text("\n".join([*lines, "", "   "]), "utf-8")
    return load_corpus(str(path))


@torch.no_grad()
def plain_sum(model, documents, layer, length, tokens=None):
    total, count = torch.zeros(model.d_mlp, model.d_mlp, dtype=torch.float64), 0
    for document in documents:
        ids = model.tokenizer(document, truncation=True, max_length=length)["input_ids"]
        if tokens is not None:
            ids = ids[: max(tokens - count, 0)]
        if not ids:
            break
        keys = []
        handle = model.projection(layer).register_forward_pre_hook(lambda _m, inputs, k=keys: k.append(inputs[0][0]))
        model.hf(torch.tensor([ids]))
        handle.remove()
        total, count = total + sum(torch.outer(k, k) for k in keys[0]), count + len(ids)
    return total / count, count


@pytest.mark.parametrize(("length", "tokens"), [(256, None), (8, None), (256, 200)])
def test_second_moments_are_plain_sums(family_model, corpus, length, tokens):
    found = second_moments(family_model, corpus, LAYERS, length, tokens)
    for layer in LAYERS:
        expected, count = plain_sum(family_model, corpus.documents, layer, length, tokens)
        assert found.tokens == count
        torch.testing.assert_close(found.matrices[layer], expected, rtol=1e-10, atol=1e-12)


def test_the_cache_is_keyed_by_content(tiny, corpus, monkeypatch):
    passes = []
    original = covariance._accumulate
    monkeypatch.setattr(covariance, "_accumulate", lambda *a: passes.append(a[2]) or original(*a))
    first = second_moments(tiny, corpus, (1, 3))
    again = second_moments(tiny, corpus, (1, 2, 3))
    assert passes == [[1, 3], [2]]  # what was there is not computed again
    assert torch.equal(first.matrices[3], again.matrices[3])
    second_moments(tiny, corpus, (1,), length=9)
    other = covariance.Corpus("renamed", corpus.documents, corpus.digest)
    second_moments(tiny, other, (1,))
    assert passes == [[1, 3], [2], [1]]


def test_a_broken_cache_file_is_computed_again(tiny, corpus):
    first = second_moments(tiny, corpus, (1,))
    (path,) = (covariance.cache_folder("second-moments")).glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(second_moments(tiny, corpus, (1,)).matrices[1], first.matrices[1])


def test_python_docs_need_no_download():
    corpus = load_corpus()
    assert len(corpus.documents) > 500
    assert len(set(corpus.documents)) == len(corpus.documents)


def test_too_few_tokens_say_how_many_are_needed(tiny, corpus):
    with pytest.raises(InputError, match=f"at least {tiny.d_mlp} tokens .* got 20"):
        second_moments(tiny, corpus, LAYERS, tokens=20)


def test_empty_unreadable_and_absent_corpora(tmp_path, monkeypatch):
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(InputError, match="expected a corpus with text, got an empty one"):
        load_corpus(str(tmp_path / "empty.txt"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="UTF-8 text file"):
        load_corpus(str(tmp_path / "latin.txt"))
    with pytest.raises(InputError, match="UTF-8 text file"):
        load_corpus(str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="the package datasets is not installed"):
        load_corpus("wikitext")


def test_a_data_set_of_the_hub(monkeypatch):
    asked = []

    def load_dataset(name, configuration, split):
        asked.append((name, configuration, split))
        if name == "broken":
            raise RuntimeError("no such thing\nand more")
        return {"text": ["one", "", "two"]}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert load_corpus("wikitext:raw").documents == ("one", "two")
    assert asked == [("wikitext", "raw", "train")]
    with pytest.raises(InputError, match="no such thing") as caught:
        load_corpus("broken")
    assert "\n" not in str(caught.value)
