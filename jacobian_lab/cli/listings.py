"""Commands that list what there is."""

from dataclasses import dataclass
from typing import Literal

from jacobian_lab.cli import say
from jacobian_lab.cli.parsing import Runnable
from jacobian_lab.facts.fact import on_one_line
from jacobian_lab.facts.reading import BUILTIN, read_facts
from jacobian_lab.progress import note, span


@dataclass(frozen=True)
class Facts(Runnable):
    """List facts, one a line, tab-separated.

    Attributes:
        facts: "builtin", "builtin-reasoning", or a JSON or JSON Lines file of facts.
        slice: Part of the facts, as A:B; all of them by default.
        on_bad_record: refuse the facts if a record cannot be used, or skip it.
        on_repeat: refuse facts that come more than once, or take each once, as the first or last record says.
    """

    facts: str = BUILTIN
    slice: str | None = None
    on_bad_record: Literal["refuse", "skip"] = "refuse"
    on_repeat: Literal["refuse", "first", "last"] = "refuse"

    def run(self) -> None:
        """List them."""
        file = read_facts(self.facts, self.slice, on_bad_record=self.on_bad_record, on_repeat=self.on_repeat)
        for line in file.notes():
            note(line)
        for fact in file.facts:
            columns = (str(fact.id), fact.text, f"{fact.target_true} -> {fact.target_new}")
            say("\t".join(map(on_one_line, columns)))


@dataclass(frozen=True)
class Models(Runnable):
    """List models."""

    def run(self) -> None:
        """List those at hand, and the settings of known ones."""
        from jacobian_lab.editing.solving import REALISED
        from jacobian_lab.model.families import FAMILIES, KNOWN
        from jacobian_lab.model.protocols import Protocol, shelf
        from jacobian_lab.model.sources import EMBEDDED

        for name, (package, file, _) in EMBEDDED.items():
            say(f"{name}: embedded, {file} of the package {package}")
        say(f"any folder, .gguf file or hub name of the families {', '.join(FAMILIES)}")
        for name, known_model in KNOWN.items():
            defaults = known_model.defaults
            layers = f"{defaults.layers[0]}-{defaults.layers[-1]}"
            anchor = f"anchor lr {defaults.anchor_lr}, {defaults.anchor_steps} steps"
            hub = f" ({known_model.hub})" if known_model.hub else ""
            ridge = f"ridge {defaults.ridge:g}" if defaults.ridge else f"ridge that realises {REALISED:g} of a residual"
            say(f"settings of {name}{hub}: layers {layers}, {ridge}, {anchor}")
        for name, path in shelf().items():
            measured = Protocol.read(path)
            anchor = f"anchor lr {measured.anchor_lr}, {measured.anchor_steps} steps"
            say(f"measured {name}: layers {span(measured.layers)}, ridge {measured.ridge:g}, {anchor}; {measured.run}")
