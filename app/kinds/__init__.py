"""What belongs to one kind of run on the pages, a module each, all of the same shape.

Each module has ``QUESTION`` (what the kind measures, for Launch), ``COLUMNS`` (columns of the Runs table and their
metrics), ``HEADLINE`` (the first among them), ``main_variant`` (which variant those are of), ``key_numbers`` and
``charts`` (of the Run page), and of several runs ``COMPARED`` (the metric that says most), ``NAMES`` (those that are
listed first) and ``compare_charts`` (charts for the Compare page and the cases, picked by what varies). They draw
nothing. Init also has ``comparison`` (a chart), ``summary`` (numbers in stored units) and ``table`` (the same as text)
of the first sweep.
"""

from __future__ import annotations

from types import ModuleType

from app.kinds import inference, init, merge, train

KINDS: dict[str, ModuleType] = {"init": init, "merge": merge, "train": train, "inference": inference}
