"""Where workers run. One module per place; all start the same ``engine.worker`` in a fresh process."""
