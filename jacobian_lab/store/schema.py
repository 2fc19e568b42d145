"""Schema of stored runs: every array with its dimensions, its meaning and its units."""

from collections.abc import Mapping
from dataclasses import replace

from jacobian_lab.store.sequences import sequence_arrays
from jacobian_lab.store.variables import Variable

COORDINATES = {
    "fact": "the record's own id",
    "scheme": "target scheme",
    "edit": "method that the model was edited with: a target scheme with an update rule",
    "layer": "layer",
    "block": "block",
    "paraphrase": "place among the record's paraphrases",
    "probe": "group of further questions",
    "neighbor": "place among the record's neighbourhood prompts",
    "anchor_layer": "layer that the anchor is optimised at",
    "ridge": "λ, the weight of the second moment in the solve",
    "token": "place of a token, counted from the subject's first",
    "site": "what is restored",
    "count": "number of decisive layers, the last one fixed",
    "row": "scheme, or jacobian-pullback with its μ",
    "study": "what was looked at beside the tables",
    "step": "step along the layer's shift, over the size of the best step that J predicts",
    "window": "decisive layers that are tried",
    "variant": "learning rate and passes of the descents",
    "point": "place on the grid of λ: a factor of what suits the window, or λ itself",
    "place": "place of a layer in its window",
    "share": "share of the shifts that is imposed",
    "prompt": "prompt of a fact: its group, and its place there",
    "targets": "model that later batches' targets are made on: as earlier batches left it, or unedited",
    "look": "facts that had been edited at the look",
    "d_model": "component of a hidden state",
    "rank": "place in a spectrum",
    "array": "array that a digest is of",
}
"""Dimensions with labels, and the meaning of these."""


def _descent(name: str, long_name: str, dims: tuple[str, ...], along: tuple[str, ...] = ()) -> dict[str, Variable]:
    """Arrays of a descent: what it gives, with its loss, its passes and the clamp's activity."""
    return {
        name: Variable((*dims, *along, "d_model"), long_name, "activation"),
        f"{name}_loss": Variable(dims, "its loss at the last pass", "nat"),
        f"{name}_passes": Variable(dims, "its passes; 0: not yet optimised", "1", "i4"),
        f"{name}_clamped": Variable(dims, "share of its updates after which the clamp scaled the shift back"),
    }


_ANCHOR, _SHIFT = "anchor: optimised hidden state", "optimised shift, coordinated replay"
_ANCHORS = _descent("anchor", _ANCHOR, ("fact", "anchor_layer"))
_COORDINATED = _descent("coordinated_shift", _SHIFT, ("fact",), ("layer",))

_AT = ("fact", "layer")

_INNER = _descent("inner_anchor", f"{_ANCHOR}, at a layer between the ends", _AT)
_RESTARTED = _descent("restarted_anchor", f"{_ANCHOR}, the best of those from random starts", ("fact",))
_JOINT = _descent("joint_anchor", f"{_ANCHOR}, drawn to the last layer's anchor", ("fact",))
_CONDITIONS = {
    "lambda_min": Variable(
        _AT, "smallest eigenvalue of S = (J + Jᵀ)/2, J from the layer to the last one, unedited model"
    ),
    "lambda_max": Variable(_AT, "largest eigenvalue of S"),
    "lambda_error": Variable(_AT, "how far off both may be, from the precision of J and what Lanczos may miss"),
    "decision": Variable(_AT, "whether S is positive definite: 1 yes, -1 no, 0 undecided", "1", "i4"),
    "cholesky": Variable(_AT, "whether S has a Cholesky factor"),
    "positive_share": Variable(_AT, "share of the eigenvalues of S that are positive"),
    "margin": Variable(_AT, "least t for which S + tI is positive semidefinite"),
    "sigma_max": Variable(_AT, "largest singular value of J"),
    "sigma_min": Variable(_AT, "smallest singular value of J"),
    "spectral_radius": Variable(_AT, "largest absolute eigenvalue of J"),
    "henrici": Variable(_AT, "Henrici's departure of J from normality, over its Frobenius norm"),
    "rotation": Variable(_AT, "Frobenius norm of J's antisymmetric part over that of its symmetric part"),
    "eigenvector_count": Variable(_AT, "number of J's real eigenvectors"),
    "eigenvector_residual": Variable(_AT, "largest relative eigen-residual of J's real eigenvectors"),
    "eigenvector_positive": Variable(_AT, "share of J's real eigenvectors v with cos(Jv, v) > 0"),
    "random_cosine": Variable(_AT, "mean cos(Jv, v) of random directions v"),
    "random_rayleigh": Variable(_AT, "mean Rayleigh quotient of random directions"),
    "random_gain": Variable(_AT, "mean |Jv| / |v| of random directions"),
    "random_positive": Variable(_AT, "share of random directions v with cos(Jv, v) > 0"),
    "random_residual": Variable(_AT, "mean relative eigen-residual of random directions"),
    "random_eigenvector_angle": Variable(_AT, "mean angle of random directions to the nearest eigenvector", "rad"),
    "random_plane_angle": Variable(_AT, "mean angle of random directions to the nearest invariant plane", "rad"),
    "surveyed": Variable(("fact",), "whether the fact's Jacobians have been surveyed", "1", "i4"),
}

_SPECTRUM = ("fact", "layer", "rank")
_SPECTRA = {
    "symmetric_eigenvalue": Variable(_SPECTRUM, "eigenvalues of S, ascending"),
    "singular_value": Variable(_SPECTRUM, "singular values of J, descending"),
    "eigenvalue_real": Variable(_SPECTRUM, "real parts of J's eigenvalues"),
    "eigenvalue_imag": Variable(_SPECTRUM, "imaginary parts of J's eigenvalues"),
}

_EACH = ("fact", "scheme", "layer")
_UNEDITED = {
    "replayed_target": Variable(("fact", "layer", "d_model"), "first anchor replayed to the layer", "activation"),
    "efficacy_unedited": Variable(("fact",), "every target token is the argmax before any edit"),
    "replayed": Variable(("fact",), "whether the fact's first anchor has been replayed", "1", "i4"),
}

_TABLES = {
    "residual_ratio": Variable(_EACH, "remaining residual at the last layer over the initial one, own target"),
    "cosine": Variable(_EACH, "cosine of the layer's shift and the passive shift at the last layer"),
    "unrealised": Variable(_EACH, "share of the layer's undivided target residual left unrealised"),
    "realised": Variable(_EACH, "shift along the residual given to the layer, over its norm"),
    "residual_norm": Variable(_EACH, "remaining residual at the last layer, own target", "activation"),
    "residual_ratio_against_optimised": Variable(_EACH, "remaining residual ratio against the optimised target"),
    "residual_ratio_against_replayed": Variable(_EACH, "remaining residual ratio against the replayed target"),
    "residual_norm_against_optimised": Variable(_EACH, "remaining residual, optimised target", "activation"),
    "residual_norm_against_replayed": Variable(_EACH, "remaining residual, replayed target", "activation"),
    "shift_norm": Variable(_EACH, "norm of the layer's shift δ", "activation"),
    "passive_shift_norm": Variable(_EACH, "norm of the passive shift at the last layer", "activation"),
    "linear_norm": Variable(_EACH, "norm of J·δ", "activation"),
    "curvature_norm": Variable(_EACH, "norm of F(h + δ) − F(h) − J·δ", "activation"),
    "leakage_norm": Variable(_EACH, "norm of the passive shift less F(h + δ) − F(h)", "activation"),
    "linear_residual_cosine": Variable(_EACH, "cosine of J·δ and the residual before the edit"),
    "curvature_residual_cosine": Variable(_EACH, "cosine of the curvature and the residual before the edit"),
    "leakage_residual_cosine": Variable(_EACH, "cosine of the leakage and the residual before the edit"),
    "share_initial": Variable(_EACH, "share of the residual before the edit in the one that is left"),
    "share_linear": Variable(_EACH, "share of −J·δ in the residual that is left"),
    "share_curvature": Variable(_EACH, "share of −curvature in the residual that is left"),
    "share_leakage": Variable(_EACH, "share of −leakage in the residual that is left"),
    "linear_cosine": Variable(_EACH, "cos(J·δ, δ) along the layer's shift"),
    "rayleigh": Variable(_EACH, "Rayleigh quotient of J along the layer's shift"),
    "eigen_residual": Variable(_EACH, "relative eigen-residual of the layer's shift, sin∠(Jδ, δ)"),
    "gain": Variable(_EACH, "norm of J·δ over the norm of δ"),
    "effort": Variable(_EACH, "norm of the layer's shift over the sum of all layers'"),
    "price": Variable(
        _EACH,
        "squared norm of the layer's shift, behind a norm that of u over rms(u), over kᵀC⁻¹k: its least disturbance",
        "activation^2",
    ),
    "out_of_reach": Variable(
        _EACH, "share of the residual given to the layer that lies beyond the norm behind its MLP; 0 without a norm"
    ),
    "carried": Variable(_EACH, "layer's part of the change at the last layer; adds up to 1 over layers"),
    "carried_linear": Variable(_EACH, "part of J·δ in the change that all edits make at the last layer"),
    "summed_cosine": Variable(_EACH, "cosine of the sum of J·δ so far and the change at the last layer so far"),
    "summed_ratio": Variable(_EACH, "norm of the sum of J·δ so far over that of the change at the last layer so far"),
    "efficacy": Variable(("fact", "scheme"), "every target token is the argmax after the edit"),
    "update_norm": Variable(("scheme", "layer"), "norm of the weight's change over the weight's norm"),
    "condition_number": Variable(("scheme", "layer"), "condition number of the solve, 1-norm estimate"),
    "unstored": Variable(("scheme", "layer"), "share of the weight's change that its dtype did not take"),
    "measured": Variable(("scheme",), "whether the scheme has been measured", "1", "i4"),
}

_STUDIED = {"studied": Variable(("study", "scheme"), "whether the scheme has been studied", "1", "i4")}

_THEOREM_1 = {
    "eigenvector_angle": Variable(
        _EACH, "angle of the layer's shift to J's nearest real eigenvector", "rad", study="theorem1"
    ),
    "plane_angle": Variable(
        _EACH, "angle of the layer's shift to J's nearest real invariant plane", "rad", study="theorem1"
    ),
    "range_position": Variable(
        _EACH, "place of the Rayleigh quotient between λ_min (0) and λ_max (1) of S", study="theorem1"
    ),
}


def _step(long_name: str, units: str = "1", dims: tuple[str, ...] = _EACH) -> Variable:
    return Variable(dims, long_name, units, study="step_size")


_STEPS = {
    "step_predicted": _step("residual after a step, as J predicts, over that before", dims=(*_EACH, "step")),
    "step_replayed": _step("residual after a step, replayed, over that before", dims=(*_EACH, "step")),
    "best_step": _step("t* = ⟨R, Jδ⟩/‖Jδ‖²: the best step along δ that J predicts, in units of δ"),
    "best_step_replayed": _step("the best step forward along δ by replay, up to 3|t*|, in units of δ"),
    "best_residual": _step("residual after the step t*, or none if it is backward, replayed, over that before"),
    "best_residual_replayed": _step("residual after the best replayed step, over that before"),
    "harm_bound": _step("2cosθ‖R‖/‖Jδ‖: the step beyond which J predicts harm, 0 if at once, in units of δ"),
    "harm_bound_replayed": _step("the same by replay; NaN if there is none up to 3|t*|"),
    "trust_radius": _step("norm of the step up to which J predicts the shift to 10 %, up to 64‖h‖", "activation"),
    "trust_share": _step("the same over the norm of the hidden state"),
}

_COUNT = ("fact", "scheme", "count")
_LAYER_COUNT = {
    "final_ratio": Variable(_COUNT, "residual left at the last layer over the initial one, own target"),
    "final_norm": Variable(_COUNT, "residual left at the last layer, own target", "activation"),
    "final_ratio_against_optimised": Variable(_COUNT, "residual left, over the initial one, optimised target"),
    "count_efficacy": Variable(_COUNT, "every target token is the argmax after the edit"),
    "count_generalization": Variable(_COUNT, "share of the paraphrases at which every target token is the argmax"),
    "count_kl": Variable(_COUNT, "KL(p_before ‖ p_after) of the next token, mean over neighbourhood prompts", "nat"),
    "counted": Variable(("scheme", "count"), "whether this many layers have been measured", "1", "i4"),
}

_COORDINATED_COUNT = _descent("coordinated_shift", _SHIFT, ("fact", "count"), ("anchor_layer",))

_ROW = ("fact", "row", "layer")
_DAMPING = {
    "residual_ratio": Variable(_ROW, "remaining residual at the last layer over the initial one, own target"),
    "linear_residual_cosine": Variable(_ROW, "cosine of J·δ and the residual before the edit"),
    "realised": Variable(_ROW, "shift along the residual given to the layer, over its norm"),
    "efficacy": Variable(("fact", "row"), "every target token is the argmax after the edit"),
    "update_norm": Variable(("row", "layer"), "norm of the weight's change over the weight's norm"),
    "measured": Variable(("row",), "whether the row has been measured", "1", "i4"),
}

_RECORD = ("fact", "edit")
_PARAPHRASE = (*_RECORD, "paraphrase")
_NEIGHBOR = (*_RECORD, "neighbor")
_WEIGHT = ("edit", "layer")
_ALONG = {"edit": ("edit", "ridge")}
_REFIT = _descent("refit_anchor", f"{_ANCHOR}, of the partly edited model", ("fact", "anchor_layer"))

_NEIGHBORS = {
    "neighbor_edited": Variable(
        ("fact", "neighbor"), "whether the neighbourhood prompt is one that the run edits: 1 yes, 0 no"
    ),
    "neighbors_compared": Variable(("fact",), "whether this has been looked up", "1", "i4"),
}

_EDIT_TABLE = {
    "efficacy_success": Variable(_RECORD, "success on the rewriting prompt"),
    "efficacy_accuracy": Variable(_RECORD, "every target token is the argmax, rewriting prompt, teacher forced"),
    "efficacy_greedy": Variable(_RECORD, "greedy decoding writes the whole target, rewriting prompt"),
    "generalization_success": Variable(_PARAPHRASE, "success on a paraphrase"),
    "generalization_accuracy": Variable(_PARAPHRASE, "every target token is the argmax, paraphrase, teacher forced"),
    "generalization_greedy": Variable(_PARAPHRASE, "greedy decoding writes the whole target, paraphrase"),
    "kl": Variable(_NEIGHBOR, "KL(p_before ‖ p_after) of the next token after a neighbourhood prompt", "nat"),
    "top1": Variable(_NEIGHBOR, "share of the likeliest next token that stayed, neighbourhood prompt"),
    "top5": Variable(_NEIGHBOR, "share of the 5 likeliest next tokens that stayed"),
    "top10": Variable(_NEIGHBOR, "share of the 10 likeliest next tokens that stayed"),
    "neighborhood_success": Variable(_NEIGHBOR, "success of the prompt's own answer, as the older literature has it"),
    "probe_accuracy": Variable(
        (*_RECORD, "probe"), "share of a group's further questions that are answered, by any of their answers"
    ),
    "nll_new": Variable(_RECORD, "mean NLL of the new target, rewriting prompt", "nat"),
    "nll_true": Variable(_RECORD, "mean NLL of the true target, rewriting prompt", "nat"),
    "perplexity": Variable(("edit",), "perplexity of the held-out text"),
    "update_norm": Variable(_WEIGHT, "norm of the weight's change over the weight's norm"),
    "condition_number": Variable(_WEIGHT, "condition number of the solve, 1-norm estimate, the largest of the batches"),
    "unstored": Variable(_WEIGHT, "share of the weight's change that its dtype did not take"),
    "shrunk_values": Variable(_WEIGHT, "singular values that PRUNE shrank"),
    "kept_energy": Variable(_WEIGHT, "share of the change's squared norm that RECT kept"),
    "null_space_rank": Variable(_WEIGHT, "rank of AlphaEdit's null space"),
    "trace_left_out": Variable(_WEIGHT, "share of C's trace outside AlphaEdit's null space"),
    "measured": Variable(("edit",), "whether the method has been measured", "1", "i4"),
}

_AIMS = {
    "aim_cosine": Variable(
        _RECORD, "cosine of the decisive token's shift at the last block with that to which the anchor at L leads"
    ),
    "aim_share": Variable(_RECORD, "share of the latter that the shift realises along it"),
}

_TRAINED = {
    "training_steps": Variable(_RECORD, "steps that a fact's edit took"),
    "training_loss": Variable(_RECORD, "loss at the last of them; with RLEdit of its answer, its batch edited", "nat"),
    "distance": Variable(
        _RECORD,
        "distance of a memory's matrix from the model's own over its threshold, the largest: from 1 on it serves",
    ),
    "distance_paraphrase": Variable(_PARAPHRASE, "the same on a paraphrase"),
    "distance_neighbor": Variable(_NEIGHBOR, "the same on a neighbourhood prompt"),
    "threshold": Variable(("edit",), "the least distance from which on a memory serves", "activation"),
    "changed_norm": Variable(("edit", "block"), "norm of what a block's matrices changed by, over theirs"),
    "changed_rank": Variable(("edit", "block"), "largest rank of these changes"),
    "changed_unstored": Variable(("edit", "block"), "share of them that their dtype did not take"),
}

_FRONTIER = {
    name: replace(variable, dims=tuple(inner for dim in variable.dims for inner in _ALONG.get(dim, (dim,))))
    for name, variable in _EDIT_TABLE.items()
}
"""Arrays of an edit table, at several λ."""

_TRACES = {
    "answer_clean": Variable(("fact",), "probability of the true answer's first token"),
    "answer_corrupted": Variable(("fact",), "the same with noise on the subject's embeddings, mean over draws"),
    "recalled": Variable(("fact",), "whether the true answer's first token is the likeliest"),
    "role": Variable(("fact", "token"), "the token's role: place in catalogue.ROLES from 1 on; 0: none", "1", "i4"),
    "effect": Variable(
        ("fact", "token", "layer", "site"),
        "probability of the answer with a state restored less that without, mean over draws",
    ),
    "traced": Variable(("fact",), "whether the fact has been traced", "1", "i4"),
}
_TRIED = ("edit", "window", "variant", "point")
_TUNE_ANCHORS = _descent("anchor", _ANCHOR, ("fact", "variant", "anchor_layer"))
_SHIFTED = ("fact", "window", "variant")
_TUNE_SHIFTS = _descent("coordinated_shift", _SHIFT, _SHIFTED, ("place",))
_OBSERVED = ("fact", "edit", "window")
_TUNE_OBSERVED = {
    "suited_ridge": Variable(("edit", "window"), "λ that suits the window"),
    "realised": Variable((*_OBSERVED, "layer"), "shift along the residual given to the layer, over its norm"),
    "residual_ratio": Variable((*_OBSERVED, "layer"), "remaining residual at the last layer over the initial one"),
    "disturbance": Variable(
        ("edit", "window"),
        "root mean square of what the shifts change of other tokens' states at the least, over these",
    ),
    "observed_efficacy": Variable(_OBSERVED, "every target token is the argmax after the edit at that λ"),
    "observed_reached": Variable(("edit", "window"), "share of facts whose descent came below the loss that ends it"),
    "observed_passes": Variable(("edit", "window"), "mean passes of a fact's descents"),
    "observed_seconds": Variable(("edit", "window"), "seconds that the observed edit took", "s"),
    "observed": Variable(("edit", "window"), "whether the window has been observed", "1", "i4"),
}
_TUNE_TRIED = {
    name: replace(
        variable, dims=tuple(inner for dim in variable.dims for inner in (_TRIED if dim == "edit" else (dim,)))
    )
    for name, variable in _EDIT_TABLE.items()
} | {
    "ridge": Variable(_TRIED, "λ of the try"),
    "reached": Variable(_TRIED, "share of facts whose descent came below the loss that ends it"),
    "passes": Variable(_TRIED, "mean passes of a fact's descents"),
    "seconds": Variable(_TRIED, "seconds that the edit and its evaluation took", "s"),
}
"""Arrays of a search over windows of layers, λ, learning rate and passes."""

_SHARED = {
    "transferred": Variable(
        ("fact", "layer", "prompt"),
        "share of the layer's shift that the prompt's key gets, k'ᵀA⁻¹k / kᵀA⁻¹k, A = λC + KKᵀ of the facts together; "
        "of a neighbourhood prompt that of the token with the largest one",
    ),
    "own_share": Variable(_AT, "share of the layer's shift that the key itself gets from its own fact, kᵀA⁻¹k"),
    "ease": Variable(_AT, "kᵀC⁻¹k: the larger, the cheaper a shift", "token"),
    "shared": Variable(("layer",), "whether the layer's shares have been measured", "1", "i4"),
}
_IMPOSED = ("fact", "scheme", "share", "prompt")
_ASKED = ("fact", "scheme", "prompt")
_IMPOSING = {
    "imposed_accuracy": Variable(_IMPOSED, "every target token is the argmax, a share of the shifts imposed"),
    "imposed_nll": Variable(_IMPOSED, "mean NLL of the new target, a share of the shifts imposed", "nat"),
    "edited_accuracy": Variable(_ASKED, "every target token is the argmax after the edit"),
    "edited_nll": Variable(_ASKED, "mean NLL of the new target after the edit", "nat"),
    "measured": Variable(("scheme",), "whether the scheme has been imposed and edited with", "1", "i4"),
}
"""Arrays of a run of transfer."""

DIGEST = "_digest"
"""Suffix of the name of a mark's digests."""


def _part(mark: str, variables: Mapping[str, Variable]) -> dict[str, Variable]:
    """The arrays of a part, its mark among them, and the digests that say whether what was finished is all there."""
    meaning = f"SHA-256, its first 8 bytes, of each array at what {mark} says is finished"
    digest = Variable((*variables[mark].dims, "array"), meaning, dtype="u8")
    return {name: replace(variable, mark=mark) for name, variable in variables.items()} | {f"{mark}{DIGEST}": digest}


_FURTHER = (
    _part("inner_anchor_passes", _INNER)
    | _part("restarted_anchor_passes", _RESTARTED)
    | _part("joint_anchor_passes", _JOINT)
)
"""Anchors of schemes that need more than those at both ends."""
_DESCENTS = (_ANCHORS, _COORDINATED, _INNER, _RESTARTED, _JOINT)
KINDS: dict[str, dict[str, Variable]] = {
    "tables": _part("anchor_passes", _ANCHORS)
    | _part("coordinated_shift_passes", _COORDINATED)
    | _FURTHER
    | _part("replayed", _UNEDITED)
    | _part("measured", _TABLES)
    | _part("surveyed", _CONDITIONS)
    | _part("studied", _THEOREM_1 | _STEPS | _STUDIED),
    "jacobian": _part("surveyed", _CONDITIONS | _SPECTRA),
    "layer_count": _part("anchor_passes", _ANCHORS)
    | _part("coordinated_shift_passes", _COORDINATED_COUNT)
    | _part("counted", _LAYER_COUNT),
    "damping": _part("anchor_passes", _ANCHORS) | _part("measured", _DAMPING),
    "locate": _part("traced", _TRACES),
    "edit_table": _part("anchor_passes", _ANCHORS)
    | _part("coordinated_shift_passes", _COORDINATED)
    | _FURTHER
    | _part("refit_anchor_passes", _REFIT)
    | _part("neighbors_compared", _NEIGHBORS)
    | _part("measured", _EDIT_TABLE | _AIMS | _TRAINED),
    "frontier": _part("anchor_passes", _ANCHORS)
    | _part("coordinated_shift_passes", _COORDINATED)
    | _FURTHER
    | _part("neighbors_compared", _NEIGHBORS)
    | _part("measured", _FRONTIER),
    "transfer": _part("anchor_passes", _ANCHORS)
    | _part("coordinated_shift_passes", _COORDINATED)
    | _part("shared", _SHARED)
    | _part("measured", _IMPOSING),
    "tune": _part("anchor_passes", _TUNE_ANCHORS)
    | _part("coordinated_shift_passes", _TUNE_SHIFTS)
    | _part("observed", _TUNE_OBSERVED)
    | _part("neighbors_compared", _NEIGHBORS)
    | _part("measured", _TUNE_TRIED),
    "sequence": _part("neighbors_compared", _NEIGHBORS)
    | sequence_arrays(_part, _DESCENTS, _REFIT, _EDIT_TABLE, _TABLES | _CONDITIONS),
}
"""Kinds of runs, and the arrays of each."""

RANDOM_DIRECTIONS = 64
"""Random directions that serve as a yardstick for each Jacobian; `random_positive` is a share of these."""
DECISIONS = {"definite": 1, "undecided": 0, "indefinite": -1}
"""Stored values of theorem 2's verdict."""
