"""Names of runs on the command line."""

COMMANDS = {
    "tables": "schemes",
    "edit_table": "methods",
    "jacobian": "jacobians",
    "theorem1": "schemes --studies theorem1",
    "theorem2": "schemes --studies theorem1",
    "decomposition": "schemes --no-verdicts",
    "step_size": "schemes --studies step_size --no-verdicts",
}
"""Commands of kinds, studies and tables that have another name on the command line."""


def command_of(name: str) -> str:
    """Name of a kind of run, a study or a table on the command line: with dashes."""
    first, *options = name.split(" ")
    return " ".join([COMMANDS.get(first, first.replace("_", "-")), *options])
