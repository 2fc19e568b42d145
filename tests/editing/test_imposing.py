"""Imposed shifts against anchors and targets, read by hooks on the whole untouched model."""

import pytest
import torch
from helpers.reference import Plain, prompt
from helpers.small import CONTEXTS

from jacobian_lab.editing.imposing import imposed_shifts
from jacobian_lab.editing.schemes import make_targets
from jacobian_lab.errors import InputError
from jacobian_lab.maps.writes import shifted_states
from jacobian_lab.model.rows import fact_rows

LAYERS = (1, 2, 3)


@pytest.mark.parametrize("family", ["llama", "granite", "olmo2"])
def test_the_whole_of_a_shift_brings_about_its_target(family, load_exact, facts):
    """Added to the stream, and behind a norm (OLMo 2) to what the MLP writes."""
    model = load_exact(family)
    rows, reference = fact_rows(model, facts[:3], CONTEXTS), Plain.of(model)
    close = 1e-6 if model.family.output_norm else 1e-10  # the norm's ε, which the nearest change leaves out
    generator = torch.Generator().manual_seed(0)
    shifts = 0.3 * torch.randn(3, len(LAYERS), model.d_model, generator=generator, dtype=torch.float64)
    anchors = {layer: shifted_states(model, rows.bare, layer, shifts[:, at]) for layer, at in ((1, 0), (3, 2))}
    targets = make_targets(rows, LAYERS, anchors, shifts)
    for kind, layers in (("optimised", (3,)), ("replayed", (1,)), ("coordinated", LAYERS)):
        imposed = imposed_shifts(rows, targets, kind, shifts)
        assert tuple(imposed) == layers
        for fact in range(3):
            ids, place = prompt(model.tokenizer, facts[fact])
            own = {layer: shift[fact] for layer, shift in imposed.items()}
            with torch.no_grad():
                _, states = reference.states(ids, place, [3], shifts=own)
            torch.testing.assert_close(states[3], targets.of(kind, 3)[fact], rtol=close, atol=close)
    with pytest.raises(InputError, match="expected coordinated shifts to impose"):
        imposed_shifts(rows, targets, "coordinated")
