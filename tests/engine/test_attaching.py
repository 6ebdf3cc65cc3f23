"""Every attach of a job starts from the same bare model."""

from __future__ import annotations

import pytest
import torch

from engine.jobs.attaching import Bench
from engine.spec import InitSpec, parse_spec


@pytest.mark.parametrize("method", ["olora", "pissa", "orthogonal"])
def test_an_init_that_writes_into_the_weights_is_undone_between_repeats(method: str) -> None:
    options = {"init_lora_weights": method}
    spec = parse_spec({"model": "tiny-test", "dtype": "float32", "adapter": {"rank": 8, "options": options}})
    assert isinstance(spec, InitSpec)
    bench = Bench(spec, lambda progress: None, 1)
    before = {name: parameter.detach().clone() for name, parameter in bench.model.named_parameters()}
    for _ in range(2):
        with bench.attached("attach"):
            pass
        after = dict(bench.model.named_parameters())
        assert after.keys() == before.keys()
        for name, parameter in before.items():
            assert torch.equal(after[name], parameter), name
