"""Why an edit of a language model's knowledge works, layer by layer.

The toolkit implements and extends "From Backward Spreading to Forward Replay" (arXiv 2605.00358v2).
"""

from importlib.metadata import version

__version__ = version(__name__)
