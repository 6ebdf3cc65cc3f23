"""What a result document from elsewhere must be for this engine: a measurement whose spec makes sense here.

Checks the spec alone, and reads nothing of this machine: a path in a spec of another machine stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.catalog.choices import FULL_FINE_TUNING, adapter_label
from engine.spec import MEASURED_KINDS, SpecError, hash_of, parse_spec


class DocumentSpec(NamedTuple):
    """A document's spec with every field, its hash, and what charts call its adapter (None for a bare model)."""

    spec: dict[str, Any]
    spec_hash: str
    adapter: str | None


def document_spec(spec: Mapping[str, Any]) -> DocumentSpec:
    """The whole form of a document's spec.

    Raises:
        SpecError: with one sentence that starts with the field at fault, such as "spec.adapter.rank: ...".
    """
    kind = spec.get("kind")
    if kind not in MEASURED_KINDS:
        raise SpecError("spec.kind", f"must be one of {', '.join(MEASURED_KINDS)}, not {str(kind)[:60]}")
    try:
        whole = parse_spec(spec).model_dump(mode="json")
    except SpecError as error:
        raise SpecError(f"spec.{error.field}", error.sentence) from None
    adapter = whole["adapter"]
    if adapter is not None and "path" in adapter:
        # Parsing resolves a path, which means something on the machine it comes from only.
        adapter["path"] = spec["adapter"]["path"]
    bare = FULL_FINE_TUNING if kind == "train" else None
    return DocumentSpec(whole, hash_of(whole), bare if adapter is None else adapter_label(adapter))
