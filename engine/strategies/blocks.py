"""Find a transformer's repeated blocks. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def blocks(model: nn.Module) -> Mapping[str, nn.Module]:
    """The model's repeated blocks by full name, first to last: the elements of its outermost, longest module list."""
    path, found = block_list(model)
    return {f"{path}.{number}": block for number, block in enumerate(found)}


def block_list(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list that holds the blocks, with its full name; an empty list without a name where there is none."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    # Lists within a block (experts) have more dots in their names than the list of blocks.
    lists.sort(key=lambda item: (item[0].count("."), -len(item[1])))
    return lists[0] if lists else ("", nn.ModuleList())
