"""Which ways to train a model fit where: searches over what ``engine.predict`` predicts, and ranks what was found.

Measures nothing. What a step costs in time is estimated, and said to be.
"""
