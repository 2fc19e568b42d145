"""Entries of the registry for runs of transfer."""

from functools import partial

from jacobian_lab.report import conclusions
from jacobian_lab.report.entries import FigureEntry, TableEntry, drawing
from jacobian_lab.report.tables import theorems
from jacobian_lab.report.tables.transfer import imposed

KIND = ("transfer",)
TABLES: dict[str, TableEntry] = {
    "transfer": TableEntry(
        kinds=KIND,
        caption="Transfer: the share of a layer's shift that reaches a prompt's key, k'ᵀA⁻¹k / kᵀA⁻¹k, of each fact "
        "the mean over its prompts; A = λC + KKᵀ of the facts together, keys of the unedited model. At neighbourhood "
        "prompts a share is damage.",
        needs=("transferred",),
        make=partial(theorems.as_table, name="transfer"),
    ),
    "imposed": TableEntry(
        kinds=KIND,
        caption="Imposed against edited: accuracy × 100 and loss (NLL in nats) of the new answer while shares of the "
        "shifts are imposed by replay at the decisive token, nothing edited, and after MEMIT's edit; of each fact the "
        "mean over its prompts.",
        needs=("imposed_accuracy",),
        make=imposed,
    ),
}
"""Tables of transfer."""

FIGURES: dict[str, FigureEntry] = {
    "transfer": FigureEntry(
        kinds=KIND,
        caption="Transfer: the share of a layer's shift that reaches other contexts' keys; and what the new answer's "
        "accuracy is there while a share of each scheme's shifts is imposed, and after the edit (hollow).",
        needs=("transferred",),
        draw=drawing("transfer.transfer"),
        conclusion=conclusions.transfer,
        panels=lambda dataset: 1 + len(drawing("transfer.groups_of")(dataset)),
        height=1.0,
    ),
}
"""Figures of transfer."""
