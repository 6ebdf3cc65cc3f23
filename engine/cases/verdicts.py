"""What every case's verdict has in common: the counts, the words for missing runs, and those for missing hardware.

Decides nothing about a claim: the rules are in the cases' own modules. Imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from engine.cases.evidence import Evidence, quartiles
from engine.cases.records import Ratio, Sweep, Verdict, Word
from engine.spec import Measured

SETTLING_ROUNDS = 5
"""Rounds that it takes where they disagree on the direction."""


def direction(rounds: Sequence[float], least: float) -> Word | None:
    """Whether a ratio reaches ``least`` in every round; None where rounds disagree and are few.

    Of many rounds the lower quartile decides: the worst of ever more rounds would in the end be some accident.
    """
    if len(rounds) >= SETTLING_ROUNDS:
        reaches = quartiles(rounds)[0] >= least
    elif min(rounds) < least <= max(rounds):
        return None
    else:
        reaches = min(rounds) >= least
    return "holds in direction" if reaches else "does not hold here"


class Judging:
    """The runs that a rule needs, ``each`` times, and verdicts with their counts filled in."""

    def __init__(
        self, evidence: Evidence, needed: Sequence[Measured], each: int, *, out_of_memory_counts: bool = False
    ) -> None:
        ran_out = sum(evidence.ran_out(spec) for spec in needed)
        self.need = each * len(needed)
        self.have = evidence.count(needed, each) + (ran_out if out_of_memory_counts else 0)
        self._needed = needed
        self._evidence = evidence
        self._without_a_figure = 0 if out_of_memory_counts else ran_out

    @property
    def complete(self) -> bool:
        """Whether every run that the rule needs is there."""
        return self.have >= self.need

    def verdict(self, word: Word, sentence: str, ratios: Sequence[Ratio], key_value: float | None) -> Verdict:
        """A verdict; what does not count is said after its sentence."""
        said = " ".join(part for part in (sentence, self._evidence.set_aside) if part)
        return Verdict(word, said, key_value, tuple(ratios), self.have, self.need)

    def disagreement(self, said: str, ratios: Sequence[Ratio], key_value: float | None, each: int) -> Verdict:
        """That the runs so far do not say the same, and that ``each`` of every setting decide."""
        why = f"{said} The measurements disagree on the direction; {each} runs of each setting decide."
        found = self.verdict("not enough data yet", why, ratios, key_value)
        have, need = self._evidence.count(self._needed, each), each * len(self._needed)
        return dataclasses.replace(found, have=have, need=need)

    def not_enough(self, ratios: Sequence[Ratio], key_value: float | None, why: str = "") -> Verdict:
        """That the rule cannot decide yet, and what it takes."""
        if not why:
            missing = self.need - self.have
            why = f"The rule needs {self.need} {'run' if self.need == 1 else 'runs'}, and {missing} of them "
            why += "is missing." if missing == 1 else "are missing."
            if self._without_a_figure:
                why += f" {self._without_a_figure} ran out of memory here."
        return self.verdict("not enough data yet", why, ratios, key_value)


def not_testable(sweep: Sweep, device_kinds: Collection[str]) -> Verdict | None:
    """That a sweep needs a GPU and this machine has none; None where it has what it needs."""
    if sweep.device_kind in device_kinds or sweep.device_kind == "cpu":
        return None
    sentence = f"The published sweep of {sweep.model} runs on a GPU, and this machine has none."
    return Verdict("not testable on this machine: no GPU", sentence, None, (), 0, len(sweep.specs))
