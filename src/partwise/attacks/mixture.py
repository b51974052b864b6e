"""Several attacks at once, each by clients of its own."""

from __future__ import annotations

from dataclasses import dataclass

from partwise.core.attack import Attack, Scene, sees_honest
from partwise.core.population import Client, Dataset
from partwise.core.update import Update

__all__ = ["Mixture"]


@dataclass(frozen=True)
class Mixture(Attack):
    """Groups of hostile clients, each with an attack of its own; those of a group act together.

    Args:
        attacks: one per group.
        clients: the numbers of each group's clients; who is in none does what it should. Name all of them as the
            clients of `Hostile` too.

    Example:
        >>> from partwise.attacks import LabelFlip, SignFlip
        >>> Mixture((SignFlip(), LabelFlip()), ((0, 1), (2,))).members()
        (0, 1, 2)
    """

    attacks: tuple[Attack, ...]
    clients: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len(self.attacks) != len(self.clients):
            raise ValueError(
                f"Mixture(): needs one group of clients per attack, got {len(self.attacks)} attacks and "
                f"{len(self.clients)} groups. Name them all."
            )
        twice = len(self.members()) - len(set(self.members()))
        if twice:
            raise ValueError(f"Mixture(): a client belongs to one group, got {twice} in two. Take them out of one.")

    @property
    def sees_honest(self) -> bool:
        return any(map(sees_honest, self.attacks))

    def members(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(client for group in self.clients for client in group)

    def poison(self, data: Dataset, client: Client, seed: int) -> Dataset:
        for attack, group in zip(self.attacks, self.clients, strict=True):
            if client in group:
                return attack.poison(data, client, seed)
        return data

    def forge(self, scene: Scene) -> list[Update]:
        sent = list(scene.own)
        for attack, group in zip(self.attacks, self.clients, strict=True):
            mine = [at for at, client in enumerate(scene.clients) if client in group]
            if mine:
                own, numbers = [scene.own[at] for at in mine], [scene.clients[at] for at in mine]
                for at, update in zip(mine, attack.forge(scene._replace(own=own, clients=numbers)), strict=True):
                    sent[at] = update
        return sent
