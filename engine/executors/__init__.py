"""Where workers run. One module per place; all start the same ``engine.worker`` in a fresh process."""


class ExecutorError(RuntimeError):
    """Workers cannot be started; the text says why."""
