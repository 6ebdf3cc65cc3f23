"""Alternatives to stock PEFT, each with the proof that its result is the same. Measures nothing itself."""
