"""Runs of every kind, filled with numbers and no model behind them."""

from pathlib import Path

import numpy as np

from jacobian_lab.store.run import Run
from jacobian_lab.store.schema import KINDS

FACTS = [f"fact {n}" for n in range(6)]
SETTINGS = {
    "anchor": {"lr": 0.5, "steps": 25, "stop_loss": 0.05},
    "seed": 3,
    "layers": [4, 5, 6, 7, 8],
    "dtype": "float32",
    "metrics": "counterfact",
    "noise": 3.0,
    "samples": 10,
    "window": 3,
    "tune": {
        "criterion": "bound",
        "kl_bound": None,
        "windows": {"4-5": [4, 5], "7-8": [7, 8]},
        "variants": {"lr 0.5, 25 passes": [0.5, 25], "lr 0.2, 25 passes": [0.2, 25]},
    },
}
OWN_SETTINGS = {"sequence": {"edits_per_batch": 2}}
"""Settings of one kind of run alone."""
PROVENANCE = {
    "model": "my_model",
    "protocol": "llama-3-8b-instruct",
    "facts": {"source": "builtin", "slice": "0:6", "count": 6},
    "deviation": 0.1,
    "tokens": [[" the", " Eiffel", " Tower", " in"]] * 6,
}
TRAINED = {
    "training_steps": "wise",
    "training_loss": "wise",
    "distance": "wise",
    "distance_paraphrase": "wise",
    "distance_neighbor": "wise",
    "threshold": "wise",
    "changed_norm": "rledit",
    "changed_rank": "rledit",
    "changed_unstored": "rledit",
}
"""What one method alone has."""
ROLES_OF_TOKENS = [1, 2, 3, 6]
"""Roles of a fact's tokens in a run of traces."""
LAYERS = {"fact": FACTS, "layer": [4, 5, 6, 7, 8]}
SCHEMES = ["backward-dividing", "backward-full", "one-layer", "forward-replay", "coordinated-replay"]
METHODS = ["unedited", "memit", "blue", "emmet", "memit+fe", "memit+cr", "prune", "wise", "rledit"]
EDITED = {
    **LAYERS,
    "edit": METHODS,
    "anchor_layer": [4, 8],
    "paraphrase": range(2),
    "neighbor": range(3),
    "probe": ["none"],
    "block": range(4),
    "d_model": range(3),
}
COORDINATES = {
    "tables": {
        **LAYERS,
        "scheme": SCHEMES,
        "anchor_layer": [4, 8],
        "study": ["theorem1", "step_size"],
        "step": [0.0, 1.0, 2.0],
        "d_model": range(3),
    },
    "jacobian": {"fact": FACTS, "layer": [4, 5, 6, 7], "rank": range(4)},
    "layer_count": {
        "fact": FACTS,
        "scheme": SCHEMES,
        "count": [1, 2, 3],
        "anchor_layer": [6, 7, 8],
        "d_model": range(3),
    },
    "locate": {"fact": FACTS, "token": range(4), "layer": [4, 5, 6, 7], "site": ["residual", "mlp", "attention"]},
    "edit_table": EDITED,
    "frontier": {**EDITED, "edit": ["memit", "memit+fe", "memit+cr", "memit@backward-full"], "ridge": [10.0, 100.0]},
    "sequence": {
        **EDITED,
        "edit": ["unedited", "memit", "memit+cr", "alphaedit+fe", "blue-refit"],
        "targets": ["current", "unedited"],
        "look": [0, 2, 4, 6],
    },
    "transfer": {
        **LAYERS,
        "scheme": ["backward-dividing", "forward-replay", "coordinated-replay"],
        "share": [1.0, 0.5],
        "prompt": ["seen 0", "seen 1", "held out 0", "paraphrase 0", "paraphrase 1", "neighborhood 0"],
        "anchor_layer": [4, 8],
        "d_model": range(3),
    },
    "tune": {
        **EDITED,
        "edit": ["memit", "memit+fe", "memit+cr"],
        "window": list(SETTINGS["tune"]["windows"]),
        "variant": list(SETTINGS["tune"]["variants"]),
        "point": [0.1, 1.0, 10.0],
        "place": range(2),
    },
}
"""The coordinates of a run of each kind."""


def make_run(folder: Path, kind: str, settings=None, provenance=None, coordinates=None, **written) -> Path:
    """A finished run; what is given replaces the settings, labels, or random numbers of a variable."""
    rng = np.random.default_rng(0)
    labels = COORDINATES[kind] | (coordinates or {})
    own = SETTINGS | OWN_SETTINGS.get(kind, {}) | (settings or {})
    with Run(folder, kind, own, PROVENANCE | (provenance or {}), labels) as run:
        for name, variable in KINDS[kind].items():
            if variable.dtype == "f8":
                shape = [len(run.coordinates[dim]) for dim in variable.dims]
                values = rng.uniform(0.1, 2.0 if name.startswith("distance") else 0.9, size=shape)
                if name in TRAINED and kind == "edit_table":
                    others = [place for place, each in enumerate(METHODS) if each != TRAINED[name]]
                    values.swapaxes(0, variable.dims.index("edit"))[others] = np.nan
                run.write(name, written.get(name, values))
        if kind == "locate":
            run.write("role", np.tile(ROLES_OF_TOKENS, (len(run.coordinates["fact"]), 1)))
        for mark in {variable.mark for variable in KINDS[kind].values()} - {""}:
            run.commit(mark, 5 if mark.endswith("passes") else 1)
    return folder
