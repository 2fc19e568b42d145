"""Theorem 2: the strict condition on S, and the milder one along the edits' own directions."""

from jacobian_lab.report.figures import theorem2
from jacobian_lab.report.style import script

if __name__ == "__main__":
    script(theorem2, __doc__, below=True, needs=("lambda_min", "linear_cosine"), panels=lambda _run: 3)
