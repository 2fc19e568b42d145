"""Published second moments: MEMIT's files read as they are, and what is not the model's refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from jacobian_lab.editing.published_moments import Published
from jacobian_lab.editing.second_moments import second_moments, sums_of_keys
from jacobian_lab.editor import Editor
from jacobian_lab.errors import InputError
from jacobian_lab.jobs import experiment as bench
from jacobian_lab.jobs.config import SchemesConfig
from jacobian_lab.jobs.kinds import run_job
from jacobian_lab.model.corpus import load_corpus, token_rows
from jacobian_lab.model.loading import load_model
from jacobian_lab.store.arrays import read_config

LAYERS = (1, 2, 3)


def name_of(model, layer):
    return next(name for name, module in model.hf.named_modules() if module is model.projection(layer))


def publish(folder, model, sums, count, dtype=np.float32):
    """Files as MEMIT's running statistics are saved."""
    folder.mkdir(exist_ok=True)
    for layer, matrix in sums.items():
        np.savez(
            folder / f"{name_of(model, layer)}_float32_mom2_100000.npz",
            **{
                "mom2.constructor": "util.runningstats.SecondMoment()",
                "mom2.count": count,
                "mom2.mom2": matrix.numpy().astype(dtype),
                "sample_size": 100000,
            },
        )
    return folder


@pytest.fixture(scope="module")
def counted(tiny):
    rows = token_rows(tiny, load_corpus(), 64, 4000)
    return sums_of_keys(tiny, rows, LAYERS), sum(len(row.ids) for row in rows)


@pytest.fixture
def folder(tmp_path, tiny, counted):
    return publish(tmp_path / "stats", tiny, *counted)


def read(folder, model, layers=LAYERS):
    return Published.of(model, folder, layers).read(model)


def test_every_family_finds_its_files_and_reads_the_mean(family_model, tmp_path):
    rows = token_rows(family_model, load_corpus(), 64, 3000)
    sums, count = sums_of_keys(family_model, rows, LAYERS), sum(len(row.ids) for row in rows)
    result = read(publish(tmp_path / "stats", family_model, sums, count), family_model)
    assert result.tokens == count
    for layer in LAYERS:
        expected = sums[layer] / count
        assert result.matrices[layer].dtype == torch.float64
        assert torch.equal(result.matrices[layer], result.matrices[layer].T)
        torch.testing.assert_close(result.matrices[layer], expected, rtol=1e-5, atol=1e-6 * float(expected.max()))


def test_safetensors_hold_the_sum_or_the_mean(tiny, tmp_path, counted):
    sums, count = counted
    tensors = {"second_moment": sums[1] / count, "tokens": torch.tensor(count)}
    save_file(tensors, tmp_path / f"{name_of(tiny, 1)}.safetensors")
    tensors = {"mom2.mom2": sums[2].float(), "mom2.count": torch.tensor(count)}
    save_file(tensors, tmp_path / f"{name_of(tiny, 2)}_wiki.safetensors")
    result = read(tmp_path, tiny, (1, 2))
    torch.testing.assert_close(result.matrices[1], sums[1] / count, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.matrices[2], sums[2] / count, rtol=1e-5, atol=1e-6)


def asymmetric(path, model, sums, count):
    matrix = sums[1].clone()
    matrix[0, 1] += matrix.max()
    publish(path, model, {1: matrix}, count)


def pickled(path, model, _sums, _count):
    np.savez(path / f"{name_of(model, 1)}_float32_mom2_100000.npz", **{"mom2.mom2": np.array([object()])})


def other_arrays(path, model, _sums, _count):
    np.savez(path / f"{name_of(model, 1)}_float32_mom2_100000.npz", mean=np.ones(3))


def torn(path, model, _sums, _count):
    file = path / f"{name_of(model, 1)}_float32_mom2_100000.npz"
    file.write_bytes(file.read_bytes()[:1000])


def empty(path, model, _sums, _count):
    (path / f"{name_of(model, 1)}_float32_mom2_100000.npz").write_bytes(b"")


def damaged(path, model, sums, count):
    file = path / f"{name_of(model, 1)}_float32_mom2_100000.npz"
    np.savez_compressed(file, **{"mom2.mom2": sums[1].numpy(), "mom2.count": count})
    content = bytearray(file.read_bytes())
    content[200:260] = bytes(60)
    file.write_bytes(content)


def unbalanced(path, model, sums, count):
    """Damage in the header of an array: NumPy's reader then raises what Python's tokenizer does."""
    file = path / f"{name_of(model, 1)}_float32_mom2_100000.npz"
    np.savez(file, **{"mom2.mom2": sums[1].numpy(), "mom2.count": count})
    content = file.read_bytes()
    assert content.count(b"(64, 64), }") == 1
    file.write_bytes(content.replace(b"(64, 64), }", b"(64, 64 , }"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p, m, s, n: publish(p, m, {1: s[1][:30, :30]}, n), r"second moment \[64, 64\] .* got \[30, 30\] in"),
        (lambda p, m, s, n: publish(p, m, {1: s[1] * float("nan")}, n), "NaN or infinity"),
        (lambda p, m, s, n: publish(p, m, {1: -s[1]}, n), "a diagonal that is not positive"),
        (asymmetric, "not symmetric"),
        (pickled, "expected mom2.mom2 and mom2.count as MEMIT writes them"),
        (other_arrays, r"expected mom2.mom2 and mom2.count .* got KeyError"),
        (torn, "expected mom2.mom2 and mom2.count as MEMIT writes them"),
        (empty, r"expected mom2.mom2 and mom2.count .* got EOFError"),
        (damaged, "expected mom2.mom2 and mom2.count as MEMIT writes them"),
        (unbalanced, r"expected mom2.mom2 and mom2.count .* got TokenError"),
        (lambda p, m, s, n: publish(p, m, {1: s[1]}, 0), "NaN or infinity"),
        (lambda p, m, s, n: publish(p, m, {1: s[1] / n}, n), "expected a mean over tokens .* times what they are"),
        (lambda p, m, s, n: publish(p, m, {1: s[1] * n}, n), "expected a mean over tokens .* times what they are"),
        (lambda p, m, s, n: publish(p, m, {1: s[1] / n * 50}, 50), "one of 50 tokens, too few for its rank"),
    ],
)
def test_what_is_no_second_moment_of_the_layer_is_refused_in_one_line(folder, tiny, counted, spoil, words):
    spoil(folder, tiny, *counted)
    with pytest.raises(InputError, match=words) as caught:
        read(folder, tiny)
    assert "\n" not in str(caught.value)


def test_another_layers_and_another_models_neurons_are_refused(family_model, tmp_path):
    """Every family: where keys are not negative, all neurons go together a little, whoever's they are."""
    rows = token_rows(family_model, load_corpus(), 64, 4000)
    sums, count = sums_of_keys(family_model, rows, LAYERS), sum(len(row.ids) for row in rows)
    order = torch.randperm(family_model.d_mlp, generator=torch.Generator().manual_seed(1))
    for wrong in (sums[2], sums[1][order][:, order]):
        folder = publish(tmp_path / "stats", family_model, {1: wrong, 2: sums[2], 3: sums[3]}, count)
        with pytest.raises(InputError, match="give the file of this model and layer"):
            read(folder, family_model)


def test_a_layer_without_a_file_or_with_two_is_named(folder, tiny):
    name = name_of(tiny, 2)
    (folder / f"{name}_float32_mom2_100.npz").write_bytes(b"")
    with pytest.raises(InputError, match=f"one file of layer 2 .* got {name}_float32_mom2_100.npz, {name}_float32"):
        read(folder, tiny)
    with pytest.raises(InputError, match=r"one file of layer 0 .* got none"):
        read(folder, tiny, (0,))
    with pytest.raises(InputError, match="expected a folder of second moments, got moments"):
        read(folder / "absent", tiny)


def test_a_run_with_published_moments(arguments, tmp_path, monkeypatch):
    """C is the files', the run is known by them, and the corpus is not read."""
    arguments = {name: value for name, value in arguments.items() if name != "corpus"}
    monkeypatch.setattr(bench, "second_moments", lambda *_, **__: pytest.fail("C was computed"))
    monkeypatch.setattr(bench, "load_corpus", lambda *_, **__: pytest.fail("the corpus was read"))
    moments_read = []
    original = Published.read
    monkeypatch.setattr(Published, "read", lambda *a: moments_read.append(original(*a)) or moments_read[-1])
    model = load_model(arguments["model"], dtype=arguments["dtype"], device="cpu")
    rows = token_rows(model, load_corpus(), 64, 4000)
    published = publish(tmp_path / "stats", model, sums_of_keys(model, rows, LAYERS), sum(len(row.ids) for row in rows))
    config = SchemesConfig(**arguments, schemes=("one-layer",), survey="none", moments=published, out=tmp_path / "run")
    run_job(config, progress=False)
    assert list(moments_read[0].matrices) == list(LAYERS)
    settings = read_config(tmp_path / "run")["settings"]
    assert settings["corpus"] == {"published": Published.of(model, published, LAYERS).digest}
    run_job(config, progress=False)
    with pytest.raises(InputError, match=r"expected moments, or corpus and corpus_tokens, got both"):
        run_job(replace(config, corpus_tokens=2000), progress=False)
    publish(published, model, {2: 1000 * moments_read[0].matrices[2]}, 1000)
    with pytest.raises(InputError, match="another corpus"):
        run_job(config, progress=False)
    with pytest.raises(InputError, match="expected a folder of second moments, got moments"):
        run_job(SchemesConfig(**arguments, moments=tmp_path / "absent", out=tmp_path / "other"), progress=False)


def test_an_editor_takes_them_too(folder, tiny, facts, counted):
    editor = Editor(tiny, facts[:2], layers=LAYERS, moments=str(folder), progress=False)
    torch.testing.assert_close(editor.moments[2], counted[0][2] / counted[1], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_real_models_layers_are_told_apart_on_other_text(real, shared, tmp_path):
    """C is from Wikipedia, as published ones are, while the comparison is by the Python documentation."""
    corpus = load_corpus(str(shared / "data" / "wikitext2_600.txt"))
    result = second_moments(real, corpus, (4, 5), 256, 8192)
    sums = {layer: matrix * result.tokens for layer, matrix in result.matrices.items()}
    publish(tmp_path, real, sums, result.tokens)
    assert torch.allclose(read(tmp_path, real, (4, 5)).matrices[5], result.matrices[5], rtol=1e-4, atol=1e-6)
    publish(tmp_path, real, {4: sums[5]}, result.tokens)
    with pytest.raises(InputError, match="file of this model and layer"):
        read(tmp_path, real, (4,))
