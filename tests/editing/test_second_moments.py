"""The second moment against a plain sum, its cache, and corpora that cannot be used."""

import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.small import make_tokenizer
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import save_file

from jacobian_lab.editing import second_moments as moments
from jacobian_lab.editing.second_moments import moment_rows, second_moments
from jacobian_lab.errors import InputError
from jacobian_lab.jobs.config import SchemesConfig
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.model import corpus as corpora
from jacobian_lab.model import hub
from jacobian_lab.model.corpus import load_corpus, token_rows
from jacobian_lab.model.loading import load_model
from jacobian_lab.store.run import config_of, open_run

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
        ids = model.tokenizer(document)["input_ids"]
        ids = (ids[:-1] if ids[-1] == model.tokenizer.eos_token_id else ids)[:length]
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
    moment = second_moments(family_model, corpus, LAYERS, length, tokens)
    documents = (corpus if tokens is None else corpus.shuffled()).documents
    for layer in LAYERS:
        expected, count = plain_sum(family_model, documents, layer, length, tokens)
        assert moment.tokens == count
        torch.testing.assert_close(moment.matrices[layer], expected, rtol=1e-10, atol=1e-12)


def test_products_in_float32_are_those_of_float64_to_rounding(folders, corpus):
    model = load_model(folders["llama"], device="cpu")
    moment = second_moments(model, corpus, LAYERS)
    for layer in LAYERS:
        expected, _ = plain_sum(model, corpus.documents, layer, 256, None)
        assert moment.matrices[layer].dtype == torch.float64
        assert (moment.matrices[layer] - expected).abs().max() < 1e-6 * expected.diagonal().max()


def test_the_cache_is_keyed_by_content(tiny, corpus, monkeypatch):
    passes = []
    original = moments.sums_of_keys
    monkeypatch.setattr(moments, "sums_of_keys", lambda *a, **k: passes.append(a[2]) or original(*a, **k))
    first = second_moments(tiny, corpus, (1, 3))
    again = second_moments(tiny, corpus, (1, 2, 3))
    assert passes == [[1, 3], [2]]  # what was there is not computed again
    assert torch.equal(first.matrices[3], again.matrices[3])
    second_moments(tiny, corpus, (1,), length=9)
    other = corpora.Corpus("renamed", corpus.documents, corpus.digest)
    second_moments(tiny, other, (1,))
    assert passes == [[1, 3], [2], [1]]


def rewritten(path, change):
    """A cache entry with other content; its digest is made anew if the change does not say otherwise."""
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    changed = change(tensors)
    save_file(tensors, path, metadata={"digest": moments._digest(tensors)} if changed is None else metadata | changed)


def changed(place, value):
    def change(tensors):
        tensors["second_moment"][place] = value

    return change


def silently_changed(tensors):
    tensors["second_moment"] *= 2  # finite, symmetric, positive, and wrong
    return {}


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("NaN or infinity", changed((2, 3), float("nan"))),
        ("not symmetric", changed((2, 3), 5.0)),
        ("a diagonal that is not positive", changed((2, 2), -1.0)),
        ("a diagonal that is not positive", changed(slice(None), 0.0)),
        ("another digest", silently_changed),
        ("another digest", lambda tensors: tensors["tokens"].add_(1) and {}),
        ("another digest", lambda _: {"digest": ""}),
        ("[3, 3] in float32", lambda tensors: tensors.update(second_moment=torch.eye(3))),
        ("other tensors", lambda tensors: tensors.pop("tokens") and None),
    ],
)
def test_a_second_moment_that_is_not_one_is_computed_again_and_told(tiny, corpus, capsys, fault, change):
    first = second_moments(tiny, corpus, (1,))
    (path,) = (moments.cache_folder("second-moments")).glob("*.safetensors")
    rewritten(path, change)
    moment = second_moments(tiny, corpus, (1,))
    assert torch.equal(moment.matrices[1], first.matrices[1])
    assert moment.tokens == first.tokens
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert fault in line
    assert str(path) in line
    second_moments(tiny, corpus, (1,))
    assert not capsys.readouterr().err  # what was computed again is kept


def test_a_broken_cache_file_is_computed_again(tiny, corpus, capsys):
    first = second_moments(tiny, corpus, (1,))
    (path,) = (moments.cache_folder("second-moments")).glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(second_moments(tiny, corpus, (1,)).matrices[1], first.matrices[1])
    assert capsys.readouterr().err.count("\n") == 1


def test_a_neuron_that_never_fires_has_a_second_moment_of_zero(tiny, corpus, capsys):
    weight = tiny.hf.model.layers[1].mlp.up_proj.weight
    original = weight.detach().clone()
    with torch.no_grad():
        weight[5] = 0
        try:
            first = second_moments(tiny, corpus, (1,))
            again = second_moments(tiny, corpus, (1,))
        finally:
            weight.copy_(original)
    assert first.matrices[1][5, 5] == 0
    assert torch.equal(again.matrices[1], first.matrices[1])
    assert not capsys.readouterr().err


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


class Rows:
    """Stand-in for a data set that counts the texts that are read."""

    def __init__(self, texts, read=None):
        self.texts, self.read = texts, [] if read is None else read

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, column):
        assert column == "text"
        self.read.extend(self.texts)
        return self.texts

    def select(self, places):
        return Rows([self.texts[place] for place in places], self.read)


def test_of_a_large_data_set_some_documents_are_drawn_by_the_seed(monkeypatch):
    """All of Wikipedia was read into memory whatever was asked for."""
    rows = Rows([f"document {n}" for n in range(1000)])
    package = types.SimpleNamespace(
        load_dataset=lambda *_, **__: rows, config=types.SimpleNamespace(HF_HUB_OFFLINE=True)
    )
    monkeypatch.setitem(sys.modules, "datasets", package)
    monkeypatch.setattr(corpora, "DRAWN", 50)
    drawn = load_corpus("wikipedia", seed=1)
    assert len(rows.read) == len(set(drawn.documents)) == 50
    assert list(drawn.documents) == sorted(drawn.documents, key=lambda text: int(text.split()[1]))
    assert max(int(text.split()[1]) for text in drawn.documents) > 500  # not the first ones
    assert load_corpus("wikipedia", seed=1) == drawn
    assert load_corpus("wikipedia", seed=2).digest != drawn.digest


def test_of_a_long_file_some_lines_are_drawn_by_the_seed(monkeypatch, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("\n".join(f"document {n}" for n in range(1000)))
    monkeypatch.setattr(corpora, "DRAWN", 50)
    drawn = [load_corpus(str(path), seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]
    assert drawn[0].digest != drawn[2].digest
    numbers = [int(text.split()[1]) for text in drawn[0].documents]
    assert len(set(numbers)) == 50
    assert numbers == sorted(numbers)
    assert np.mean(numbers) == pytest.approx(500, abs=4 * 1000 / 12**0.5 / 50**0.5)
    path.write_bytes(b"one\n\xff\n")
    with pytest.raises(InputError, match="expected a UTF-8 text file"):
        load_corpus(str(path))


def test_more_tokens_than_a_corpus_has_are_all_and_that_is_told(tiny, corpus_file, capsys):
    whole = load_corpus(str(corpus_file))
    every = second_moments(tiny, whole, [1], 32)
    assert "all are taken" not in capsys.readouterr().err
    for _ in range(2):  # computed, and out of the cache
        requested = second_moments(tiny, whole, [1], 32, 10**6)
        message = capsys.readouterr().err
        assert f"has {every.tokens} tokens, fewer than the 1000000 of corpus_tokens" in message
    assert requested.tokens == every.tokens


def test_a_number_of_tokens_is_of_documents_drawn_by_the_seed(tiny, corpus_file):
    whole = load_corpus(str(corpus_file))
    draws = [moment_rows(tiny, replace(whole, seed=seed), 32, 1000) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert sum(len(row.ids) for row in draws[0]) == 1000
    assert draws[0] != token_rows(tiny, whole, 32, 1000)  # not the first ones
    every = token_rows(tiny, whole, 32, None)
    assert {row.ids for row in draws[0][:-1]} <= {row.ids for row in every}
    assert moment_rows(tiny, whole, 32) == every
    matrices = [second_moments(tiny, replace(whole, seed=seed), [1], 32, 1000).matrices[1] for seed in (0, 1)]
    assert not torch.equal(*matrices)


@pytest.mark.slow
def test_auto_is_ten_tokens_for_every_neuron(arguments, tmp_path):
    config = SchemesConfig(**arguments, corpus_tokens="auto", schemes=("one-layer",), out=tmp_path / "run")
    run = open_run(run_job(config, progress=False))
    assert config_of(run)["settings"]["corpus"]["tokens"] == 10 * 64
    with pytest.raises(InputError, match="above zero"):
        run_job(replace(config, corpus_tokens=0), progress=False)


def test_a_data_set_of_the_hub(monkeypatch):
    requested = []

    def load_dataset(name, configuration, split):
        requested.append((name, configuration, split))
        if name == "broken":
            raise RuntimeError("no such thing\nand more")
        return Rows(["one", "", "two"])

    package = types.SimpleNamespace(load_dataset=load_dataset, config=types.SimpleNamespace(HF_HUB_OFFLINE=True))
    monkeypatch.setitem(sys.modules, "datasets", package)
    assert load_corpus("wikitext:raw").documents == ("one", "two")
    assert requested == [("wikitext", "raw", "train")]
    with pytest.raises(InputError, match="no such thing") as caught:
        load_corpus("broken")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cached", [False, True])
def test_without_a_network_a_data_set_is_looked_for_in_the_cache_and_else_said_at_once(cached, monkeypatch):
    """Nothing is asked that takes its time to give up."""

    def head(*_, **__):
        raise OSError("Name or service not known")

    def load_dataset(*_, **__):
        assert package.config.HF_HUB_OFFLINE
        assert constants.HF_HUB_OFFLINE
        if not cached:
            raise ConnectionError("not in the cache")
        return Rows(["one", "two"])

    package = types.SimpleNamespace(load_dataset=load_dataset, config=types.SimpleNamespace(HF_HUB_OFFLINE=False))
    monkeypatch.setitem(sys.modules, "datasets", package)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_session", lambda: types.SimpleNamespace(head=head))
    if cached:
        assert load_corpus("wikipedia:20200501.en").documents == ("one", "two")
    else:
        with pytest.raises(InputError, match=r"no answer from https://huggingface\.co") as caught:
            load_corpus("wikipedia:20200501.en")
        assert "\n" not in str(caught.value)
    assert not package.config.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_of_a_very_long_line_the_beginning_alone_is_tokenised(tiny):
    """A million words of which 256 tokens are kept took 0.7 GB."""
    lengths, tokenizer = [], tiny.tokenizer

    class Spy:
        num_special_tokens_to_add = staticmethod(tokenizer.num_special_tokens_to_add)

        def __call__(self, texts, **keywords):
            lengths.extend([texts] if isinstance(texts, str) else texts)
            return tokenizer(texts, **keywords)

    documents = ("Towers, rivers and old books. " * 30_000, "A short one.", " " * 3_000 + "wide")
    expected = [tokenizer(text, truncation=True, max_length=16)["input_ids"] for text in documents]
    rows = token_rows(replace(tiny, tokenizer=Spy()), corpora.Corpus("long", documents, ""), 16, None)
    assert [list(row.ids) for row in rows] == expected
    assert max(map(len, lengths)) <= max(16 * corpora.CHARACTERS_PER_TOKEN, len(documents[2]))


def test_moments_of_texts_that_ended_in_an_eos_are_not_taken_from_the_cache(tiny):
    corpus = corpora.Corpus("x", ("text",), "")
    ended, plain = (
        moments._paths(replace(tiny, tokenizer=make_tokenizer(bos=True, eos=eos)), corpus, [1], 64, None)
        for eos in (True, False)
    )
    assert ended != plain
