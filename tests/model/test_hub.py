"""Names on the hub: the cache first, an absent network said at once, and one line for whatever it answers."""

import json
import shutil
import time
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

from jacobian_lab.errors import InputError
from jacobian_lab.model import hub
from jacobian_lab.model.loading import load_model

NAME = "some-org/some-model"


def refused(words, name=NAME):
    with pytest.raises(InputError, match=words) as caught:
        load_model(name, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.fixture(autouse=True)
def online(monkeypatch, tmp_path):
    """Do without HF_HUB_OFFLINE, with an empty cache and a network that says it was touched."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "get_session", lambda: pytest.fail("the network was touched"))


@pytest.fixture
def snapshot(folders, tmp_path):
    """A model in the cache, laid out as the hub's library does."""
    root = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    return shutil.copytree(folders["llama"], root / "snapshots" / ("0" * 40))


@pytest.fixture
def answering(monkeypatch):
    monkeypatch.setattr(hub, "get_session", lambda: SimpleNamespace(head=lambda *_, **__: None))


def test_a_whole_model_in_the_cache_needs_no_network(snapshot, folders):
    assert load_model(NAME, device="cpu").fingerprint == load_model(folders["llama"], device="cpu").fingerprint


@pytest.mark.parametrize("absent", ["model.safetensors", "tokenizer.json", "shard", "config.json"])
def test_a_model_that_is_not_whole_in_the_cache_is_fetched(absent, snapshot, answering, monkeypatch, folders):
    if absent == "shard":
        (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
        shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (snapshot / hub.INDEX).write_text(json.dumps({"weight_map": shards}))
    else:
        (snapshot / absent).unlink()
    files = [SimpleNamespace(rfilename="model.safetensors")]
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_: str(folders["llama"] / "config.json"))
    monkeypatch.setattr(hub, "model_info", lambda _: SimpleNamespace(siblings=files))
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(folders["llama"]))
    assert load_model(NAME, device="cpu").n_layers == 6


def test_an_absent_network_is_said_within_five_seconds(monkeypatch):
    def head(*_, **__):
        time.sleep(60)  # a name server that never answers heeds no timeout

    monkeypatch.setattr(hub, "get_session", lambda: SimpleNamespace(head=head))
    began = time.monotonic()
    refused(r"no answer from https://huggingface.co \(nothing within 4 seconds\): check the name and the network")
    assert time.monotonic() - began < 5


def test_why_the_hub_does_not_answer_is_said(monkeypatch):
    def head(*_, **__):
        raise OSError("Name or service not known\nand more")

    monkeypatch.setattr(hub, "get_session", lambda: SimpleNamespace(head=head))
    refused(r"no answer from https://huggingface.co \(Name or service not known\)")


def test_offline_mode_is_respected(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(f"expected {NAME!r} as a file or folder here, or in the cache of the hub, since HF_HUB_OFFLINE is set")


def test_what_cannot_be_edited_is_refused_before_its_weights_are_fetched(answering, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_: str(tmp_path / "config.json"))
    monkeypatch.setattr(hub, "model_info", lambda _: pytest.fail("asked for more"))
    (tmp_path / "config.json").write_text('{"model_type": "bloom"}')
    refused("'bloom', whose MLP adds the residual stream itself")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "quantization_config": {"quant_method": "awq"}}')
    refused("not quantised, got awq")


def test_a_model_without_safetensors_is_refused_before_it_is_fetched(answering, monkeypatch, folders):
    files = [SimpleNamespace(rfilename=name) for name in ("pytorch_model.bin", "config.json", "adapter.safetensors")]
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_: str(folders["llama"] / "config.json"))
    monkeypatch.setattr(hub, "model_info", lambda _: SimpleNamespace(siblings=files))
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("fetched"))
    refused(f"expected a model with safetensors, got {NAME!r} without")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (RepositoryNotFoundError, "which is not there or private"),
        (GatedRepoError, "which is gated"),
        (OSError, r"got an error \(OSError: 401\)"),
    ],
)
def test_what_the_hub_answers_is_said_in_one_line(kind, words, answering, monkeypatch):
    def raising(*_):
        raise kind.__new__(kind, "401\nmore")  # some want a response of whichever HTTP library

    monkeypatch.setattr(hub, "hf_hub_download", raising)
    refused(words)


def test_an_adapter_on_the_hub_is_refused(answering, monkeypatch, folders):
    def absent(*_):
        raise EntryNotFoundError("404: config.json is not there")

    monkeypatch.setattr(hub, "hf_hub_download", absent)
    refused("expected a model with a config.json on the hub, got .* merge an adapter into")
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_: str(folders["llama"] / "config.json"))
    files = [SimpleNamespace(rfilename=name) for name in ("config.json", "model.safetensors", "adapter_config.json")]
    monkeypatch.setattr(hub, "model_info", lambda _: SimpleNamespace(siblings=files))
    refused("expected a whole model, got an adapter")
