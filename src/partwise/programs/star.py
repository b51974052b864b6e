"""The star: one server, many clients, one definition for every runtime."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal
from weakref import ref

from partwise.core.aggregate import Aggregator, makes_steps
from partwise.core.algorithm import Algorithm, ServerState, Site
from partwise.core.attack import Hostile
from partwise.core.channel import Binding, Channel, Guarded, Rounding, rounding_of
from partwise.core.codec import encoded_size, register
from partwise.core.compressor import chosen, compressors
from partwise.core.errors import CompositionError
from partwise.core.given import check_given
from partwise.core.index import Index
from partwise.core.limits import Noise, Side, check_noise, stages
from partwise.core.model import Model, Params, like
from partwise.core.population import Census, Client, Counts, Dataset, Population, Roll, check_clients, check_data
from partwise.core.probe import ModelProbe, Probe, probed
from partwise.core.program import RELAY, SERVER, NodeId, Program
from partwise.core.schedule import Roster, Scheduler
from partwise.core.transform import Chain, Transform, bound_of
from partwise.programs.census import check_countable, count
from partwise.programs.client import ClientProgram
from partwise.programs.download import Coded, check_download, made_shorter
from partwise.programs.hostile import Attacked
from partwise.programs.relay import RelayProgram
from partwise.programs.schema import check_from_client, check_from_server
from partwise.programs.server import ServerProgram

__all__ = ["Star"]


@dataclass(frozen=True, eq=False)
class Star:
    """A server and its clients, as programs.

    Args:
        algorithm: what clients train and keep.
        scheduler: who works, when, and what is committed together.
        model: parameters and loss.
        population: the clients.
        aggregators: stream -> aggregator; the algorithm's own where a stream is missing.
        client_chain: stream -> transform on the client; unchanged where missing.
        server_chain: stream -> transform on the aggregate; unchanged where missing.
        download_chain: stream of the server -> compressor of what clients fetch of it; unchanged where missing.
        channel: how updates reach the aggregator.
        seed: of everything.
        on_refused: what a refused update does: it is skipped like a lost client, or it stops the run.
        hostile: clients that attack; none by default.
        trusted: examples that the server holds, for parts that judge updates by them, or have clients predict them.

    Raises:
        CompositionError: parts that do not fit together.
        DataError: clients that are not numbered as a run must have them.
    """

    algorithm: Algorithm
    scheduler: Scheduler
    model: Model = field(repr=False)
    population: Population = field(repr=False)
    channel: Channel
    aggregators: Mapping[str, Aggregator] = field(default_factory=dict)
    client_chain: Mapping[str, Transform] = field(default_factory=dict)
    server_chain: Mapping[str, Transform] = field(default_factory=dict)
    download_chain: Mapping[str, Transform] = field(default_factory=dict)
    seed: int = 0
    on_refused: Literal["skip", "stop"] = "skip"
    hostile: Hostile | None = None
    trusted: Dataset | None = field(default=None, repr=False)
    _sites: OrderedDict[tuple[Client, bool], Site] = field(default_factory=OrderedDict, repr=False, init=False)
    _common: dict[str, Any] = field(default_factory=dict, repr=False, init=False)

    def __post_init__(self) -> None:
        if self.on_refused not in ("skip", "stop"):
            raise ValueError(f"Star(on_refused={self.on_refused!r}): must be 'skip' or 'stop'. Choose one.")
        check_clients(self.population)
        object.__setattr__(self, "algorithm", probed(self.algorithm, self._probe))
        for kind in self.scheduler.state_types:
            register(kind)
        for stream, aggregator in self.all_aggregators().items():
            if aggregator.needs == "each" and self.channel.reveals == "sum":
                if isinstance(aggregator, Attacked):
                    raise CompositionError(
                        f"{self.hostile!r}: plays attacks where updates can be seen, but {self.channel!r} reveals only "
                        "their sum. Test the set-up behind the Plain channel."
                    )
                raise CompositionError(
                    f"{aggregator!r}: needs each update of stream {stream!r}, but {self.channel!r} reveals "
                    "only their sum. Use an aggregator with needs='sum', or a channel that reveals each."
                )
        if self.channel.reveals == "sum" and self.algorithm.reports:
            raise CompositionError(
                f"{self.algorithm!r}: has clients report numbers of their own, which {self.channel!r}, that reveals "
                "only sums, must not tell. Use a channel that reveals each, or an algorithm that reports nothing."
            )
        if self.algorithm.needs_fresh and not self.scheduler.is_fresh:
            raise CompositionError(
                f"{self.algorithm!r}: can only add what was begun from the version that it is added to, got "
                f"{self.scheduler!r}, which may commit replies of older ones. Use Synchronous."
            )
        if self.algorithm.needs_unscaled and self.scheduler.may_scale:
            raise CompositionError(
                f"{self.algorithm!r}: adds up what clients remember having sent, got {self.scheduler!r}, which may "
                "scale updates. Use a scheduler without staleness weights."
            )
        if self.channel.exchanges and self.scheduler.may_scale:
            raise self.cannot_scale()
        self._check_ends()
        self._check_bounds()
        self._check_contributors()
        self._check_withheld()
        self._check_storage()
        self._check_compressors()
        self._check_groups()
        self._check_downloads()
        self._check_given()
        check_noise({s: self._side(s, aggregator) for s, aggregator in self._under_attack.items()})
        known = set(self.all_aggregators())
        for what, chains in (
            ("a client chain", self.client_chain),
            ("a server chain", self.server_chain),
            ("an aggregator", self.aggregators),
        ):
            unknown = sorted(set(chains) - known)
            if unknown:
                raise CompositionError(
                    f"{type(self.algorithm).__name__}: has the streams {sorted(known)}, got {what} for {unknown}. "
                    "Name one of its streams."
                )

    def cannot_scale(self) -> CompositionError:
        """What is said of a scheduler that scales updates which are not seen; it may have said that it never does."""
        return CompositionError(
            f"{self.scheduler!r}: scales updates, which {self.channel!r} keeps the server from doing. "
            "Use a scheduler without staleness weights, or a channel that reveals each update."
        )

    def _check_ends(self) -> None:
        """What clients ended with is no change: it is neither to be added to the model nor for a server chain."""
        if not self.algorithm.sends_ends:
            return
        used = self._under_attack["model"]
        if makes_steps(used):
            return
        if makes_steps(self.algorithm.aggregators()["model"]):
            raise CompositionError(
                f"{self.algorithm!r}: has clients send what they ended with, got {used!r}, which would add it to the "
                "model. Name a mean as Differences(Mean(...)), or leave it out."
            )
        if self.chain("server", "model") != Chain():
            raise CompositionError(
                f"{self.algorithm!r}: makes models of what clients ended with, got a server chain, which is for "
                f"changes: {self.chain('server', 'model')!r}. Use none."
            )

    def _check_bounds(self) -> None:
        """A masked sum needs a bound in front of it: what is larger than its words would wrap around."""
        limit = self.channel.limit
        if limit is None:
            return
        for stream in self.all_aggregators():
            bound = bound_of(self.chain("client", stream))
            if bound is None or bound > limit:
                raise CompositionError(
                    f"{self.channel!r}: needs a bound of at most {limit} at the end of the client chain of stream "
                    f"{stream!r}, got {'none' if bound is None else bound}. End the chain with Clip(max_norm={limit})."
                )

    def _check_contributors(self) -> None:
        """A channel that opens no sum of so few would leave every round without one."""
        if not isinstance(self.channel, Guarded):
            return
        drawn, clients = self.scheduler.sampling, len(self.population.clients)
        most = clients if drawn is None or not drawn.size or drawn.kind == "poisson" else min(clients, int(drawn.size))
        if most < self.channel.min_contributors:
            raise CompositionError(
                f"{self.channel!r}: opens no sum of fewer than min_contributors={self.channel.min_contributors} "
                f"clients, got {self.scheduler!r} over {clients} clients, which commits {most} at most. Ask more."
            )

    def _check_withheld(self) -> None:
        """Where what too few hold is left out, one client more lets through what the others have of it as well."""
        if not isinstance(self.channel, Guarded) or self.channel.min_contributors < 2 or self.algorithm.holds_alike:
            return
        for stream in self.all_aggregators():
            noise = [s for s in stages(self.chain("server", stream)) if isinstance(s, Noise) and s.noise_multiplier]
            is_whole = any(isinstance(stage, Noise) for stage in stages(self.chain("client", stream)))
            if noise and not is_whole:
                raise CompositionError(
                    f"{noise[0]!r}: must be made for as far as one client can move stream {stream!r}, got "
                    f"{self.channel!r}, whose clients leave out what fewer than {self.channel.min_contributors} hold, "
                    f"so that one of them decides about the values of others, and {self.algorithm!r}, whose clients "
                    "hold different parts. Use one of whole models, or noise on the clients."
                )

    def _check_storage(self) -> None:
        """What a client's transform keeps cannot begin as tensors of the model's size, which a client does not have."""
        for stream, transform in self.client_chain.items():
            state = transform.init(self.like)
            try:
                encoded_size(state)
            except TypeError as error:
                if "device=meta" not in str(error):
                    raise CompositionError(
                        f"{transform!r}: must keep a state that can be saved, got the client chain of stream "
                        f"{stream!r}: {error}"
                    ) from error
                raise CompositionError(
                    f"{transform!r}: keeps something of the model's own size from the start, got the client chain of "
                    f"stream {stream!r}, where only what is held is known. Put it into the server chain."
                ) from error

    def _check_compressors(self) -> None:
        """Words of a masked sum are all of one length: only what can be summed as it is sent makes them fewer."""
        if self.channel.reveals != "sum":
            return
        for stream in self.all_aggregators():
            for part in compressors(self.chain("client", stream)):
                if not part.claims(1 << 20).is_linear:
                    raise CompositionError(
                        f"{part!r}: cannot be summed as it is sent, got {self.channel!r} behind it for stream "
                        f"{stream!r}, which sends sums of all that anybody holds at full length. Use RandomK, a "
                        "LowRankSum of the channel, or fewer of its bits."
                    )

    def _check_groups(self) -> None:
        """What a client's transform chooses by the group of a task must be there for every group of the scheduler."""
        groups, told_apart = self.scheduler.groups, self.algorithm.groups
        if told_apart is not None and (self.scheduler.measures or groups is None or groups > told_apart):
            raise CompositionError(
                f"{self.algorithm!r}: has commits of one group of tasks each, from 0 to {told_apart - 1}, got "
                f"{self.scheduler!r}, whose groups are others. Use Tiered(tiers={told_apart})."
            )
        for part in self.client_chain.values():
            try:
                for number in range(groups) if groups is not None else (_ANY_GROUP,):
                    chosen(part, number)
            except ValueError as error:
                if groups is not None:
                    raise CompositionError(f"{self.scheduler!r}: has {groups} groups of tasks: {error}") from error
                raise CompositionError(
                    f"{part!r}: chooses by the group of a task, got {self.scheduler!r}, which numbers groups without "
                    "end. Use Tiered, ByLink around Synchronous, or one compressor."
                ) from error

    def _check_downloads(self) -> None:
        if self.algorithm.mirrors and self.download_chain:
            raise CompositionError(
                f"{self.algorithm!r}: makes the same model on both sides, to the last bit, got a download chain, which "
                "loses some of it. Use none."
            )
        for download in self.download_chain.values():
            check_download(download)

    def _check_given(self) -> None:
        """Masks that are bound to the server's model cancel nowhere if clients have another one."""
        if not isinstance(self.channel, Binding) or not self.channel.binds_model:
            return
        coded = sorted(self.download_chain.keys() & self.all_aggregators().keys())
        if coded or not self.algorithm.is_given_model:
            what = f"a download chain for {coded}" if coded else f"{self.algorithm!r}"
            raise CompositionError(
                f"{self.channel!r}: binds masks to the server's model, got {what}, with which clients have another "
                "one: no sum would ever be opened. Set binds_model=False."
            )

    def all_aggregators(self) -> dict[str, Aggregator]:
        """Stream -> the aggregator that is used."""
        return dict(self._aggregators)

    @cached_property
    def _aggregators(self) -> dict[str, Aggregator]:
        if self.hostile is None or not self.members:
            return self._under_attack
        attacked = partial(Attacked, hostile=self.hostile, members=self.members, seed=self.seed)
        return {stream: attacked(part) for stream, part in self._under_attack.items()}

    @cached_property
    def _under_attack(self) -> dict[str, Aggregator]:
        """Those that hostile clients meet, if there are any: what is promised to honest clients hangs on these."""
        found = self.algorithm.aggregators()
        check_given(self.algorithm, "aggregators", found, Mapping, "a dict of aggregators by stream")
        own = dict(found)
        own.update({stream: part for stream, part in self.aggregators.items() if stream in own})
        return {stream: probed(part, self._probe) for stream, part in own.items()}

    def _probe(self, examples: int) -> Probe:
        if self.trusted is None or not len(self.trusted):
            raise CompositionError(
                "Star(trusted=None): a part needs examples that no client made, got none. "
                "Give the experiment Trusted(examples=100)."
            )
        return ModelProbe(self.model, self.trusted, examples, self.seed)

    @cached_property
    def members(self) -> frozenset[Client]:
        """The hostile clients."""
        return self.hostile.members(self.population.clients, self.seed) if self.hostile else frozenset()

    def chain(self, side: Literal["client", "server"], stream: str) -> Transform:
        """The transform of one stream on one side."""
        chains = self.client_chain if side == "client" else self.server_chain
        return chains.get(stream, Chain())

    def _side(self, stream: str, aggregator: Aggregator) -> Side:
        limit = self.algorithm.limit(stream)
        dim = sum(t.numel() for t in self.like.values()) if isinstance(self.channel, Rounding) else 0
        chains = self.chain("client", stream), aggregator, self.chain("server", stream)
        return Side(*chains, limit, rounding_of(self.channel, dim))

    def given(self, streams: ServerState, asked: Mapping[str, Index], version: int) -> dict[str, Coded]:
        """Stream -> what a client gets of what it asks for."""
        given: dict[str, Coded] = {}
        for stream, index in asked.items():
            given[stream] = held = index.gather(streams[stream])
            if stream in self.download_chain:
                given[stream] = made_shorter(self.download_chain[stream], index, held, self.seed, stream, version)
        return given

    def initial(self) -> Params:
        """The parameters before the first round."""
        return self.model.init(self.seed)

    def site(self, client: Client, version: int | None = None) -> Site:
        """What one client has at hand; kept for the clients asked last.

        Args:
            client: its number.
            version: of the task it is at, by which a hostile client's data go; without one, the true data.
        """
        is_active = (
            version is not None
            and client in self.members
            and self.hostile is not None
            and self.hostile.when.is_active(version, self.seed)
        )
        key = client, is_active
        known = self._sites.get(key)
        if known is not None:
            self._sites.move_to_end(key)
            return known
        if len(self._sites) >= _SITES_KEPT:
            self._sites.popitem(last=False)
        data = self.population.data(client)
        check_data(self.population, "data", client, data)
        site = Site(
            client=client,
            model=self.model,
            like=self.like,
            data=self.hostile.attack.poison(data, client, self.seed) if is_active and self.hostile else data,
            profile=self.population.profile(client),
            seed=self.seed,
            _common=self._common,
        )
        self._sites[key] = site
        return site

    @cached_property
    def census(self) -> Census:
        """What the server knows about the population."""
        here = ref(self)  # a star that held itself would keep its data until the next full collection

        def counts() -> Counts:
            star = here()
            assert star is not None
            check_countable(star)
            return star.population.counts() or count(star)

        return Census(len(self.population.clients), counts, self.model.buffers())

    @cached_property
    def like(self) -> Params:
        """Names, shapes and types of the parameters, without storage."""
        return like(self.initial())

    @cached_property
    def roster(self) -> Roster:
        """What the scheduler may know of the population."""
        return Roll(self.population, self.seed)

    @property
    def is_relayable(self) -> bool:
        """Whether nothing but the sum of all updates of a cohort matters, nor when they come: a relay may make it."""
        aggregators = self.all_aggregators()
        return (
            self.population.is_instant
            and self.scheduler.commits_together
            and self.algorithm.sends_change
            and not self.channel.exchanges
            and aggregators.keys() == {"model"}
            and aggregators["model"].needs == "sum"
            and self.chain("client", "model") == Chain()
            and not self.download_chain
        )

    def programs(self, *, relays: bool = False) -> Mapping[NodeId, Program]:
        """One program per node: the server's, and the clients', made when asked for.

        Args:
            relays: whether a relay stands for the clients, if it may.
        """
        return _Programs(self, is_relayed=relays and self.is_relayable)


_SITES_KEPT = 2048
_ANY_GROUP = 1 << 62  # of a scheduler that may come to any number


class _Programs(Mapping[NodeId, Program]):
    def __init__(self, star: Star, *, is_relayed: bool) -> None:
        server, client = ServerProgram(star, is_relayed=is_relayed), ClientProgram(star)
        self._server = Program(server.init, server.step, server.is_settled, server.attach, check=check_from_client)
        self._client = Program(
            client.init, client.step, is_blank=client.is_blank, rework=client.rework, check=check_from_server
        )
        self._star, self._clients = star, star.population.clients

    @cached_property
    def _relay(self) -> Program:
        relay = RelayProgram(self._star)
        return Program(relay.init, relay.step, is_blank=relay.is_blank)

    def __getitem__(self, node: NodeId) -> Program:
        return self._server if node == SERVER else self._relay if node == RELAY else self._client

    def __iter__(self) -> Iterator[NodeId]:
        yield SERVER
        yield from self._clients

    def __len__(self) -> int:
        return 1 + len(self._clients)
