"""A real network: nodes that keep their data, over Flower's network runtime.

Nothing is imported here: the part that Flower starts for every message is to be there at once.
"""

__all__: list[str] = []
