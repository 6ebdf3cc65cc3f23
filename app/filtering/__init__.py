"""Filter expressions over stored runs: ``kind = train AND (step_time_s < 2s OR tag = paper)``.

A small language of its own, read by a grammar and turned into a condition tree; nothing typed is ever evaluated. What
the words stand for is in ``fields``, how values are written in ``values``, the grammar in ``parser``.
"""

from app.filtering.errors import FilterError, pointed
from app.filtering.fields import Known
from app.filtering.parser import parse

__all__ = ["FilterError", "Known", "parse", "pointed"]
