"""Comparing stored runs: which fields differ, which runs are replicas, what their numbers say and how sure that is.

Pure functions on stored rows and numbers; draws nothing, opens no database. Values stay in stored units (seconds,
bytes) throughout.
"""
