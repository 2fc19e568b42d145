"""Causal tracing against a plain loop over the untouched model, and its draws, roles and windows."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from helpers.causal import PlainTrace
from helpers.small import FAMILIES

from jacobian_lab.catalogue import TraceSite
from jacobian_lab.errors import InputError
from jacobian_lab.facts.fact import Fact
from jacobian_lab.maps import tracing
from jacobian_lab.maps.tracing import (
    TraceSettings,
    draw_noise,
    embedding_deviation,
    trace,
    trace_prompt,
    traced_prompt,
)

ALL = get_args(TraceSite)
FACT = Fact("tower", "Eiffel Tower", "You can find the {} in the city of", "London", "Paris")


def plain_effects(model, fact, settings, **joining):
    prompt = traced_prompt(model, fact)
    settings = settings.of(model.n_layers)
    noise = draw_noise(model, fact, prompt, settings, embedding_deviation(model))
    plain = PlainTrace(model.hf, prompt.ids, prompt.subject, prompt.answer, noise, joining)
    with torch.no_grad():
        effects = [
            [
                [plain.effect(site, layer, place, settings.window) for site in settings.sites]
                for layer in settings.layers
            ]
            for place in prompt.places
        ]
    return plain, np.array(effects)


def test_every_cell_is_that_of_a_plain_loop(family_model):
    settings = TraceSettings(sites=ALL, samples=2, window=3)
    (traced,) = trace(family_model, [FACT], settings)
    with torch.no_grad():
        plain, effects = plain_effects(family_model, FACT, settings)
    assert traced.effect.shape == effects.shape
    assert np.abs(traced.effect - effects).max() < 1e-12
    assert traced.clean == pytest.approx(plain.clean, abs=1e-12)
    assert traced.corrupted == pytest.approx(np.mean(plain.corrupted), abs=1e-12)
    assert (np.abs(effects).max(axis=(0, 1)) > 1e-7).all()  # every site does something
    by_site = effects.reshape(-1, len(ALL)).round(12)
    assert np.unique(by_site, axis=1).shape == by_site.shape  # and something else
