"""Whatever comes, in whatever order, lost, twice or late: what must hold of an agent.

A failing case is printed by Hypothesis as a script of rule calls that can be replayed.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.core import events as ev
from agent.core.state import Installed
from agent.core.step import next_wake
from tests.agent.core.world import ENGINE_BYTES, Conduct, Made, Source, World, make_release
from wire.manners import Manners
from wire.transfer import ChunkFrame
from wire.twin import Phase, Probation

CONDUCTS: tuple[Conduct, ...] = (
    "good",
    "good",
    "worse",
    "crashes at load",
    "fails golden",
    "hangs in trial",
)

HALF_OF_THE_DAY = tuple(f"{hour:02}:00-{hour + 1:02}:30" for hour in range(0, 23, 3))
MANNERS = (
    Manners(),
    Manners(windows=HALF_OF_THE_DAY),
    Manners(spread_s=40),
    Manners(bytes_per_s=2000, windows=HALF_OF_THE_DAY, spread_s=600),
)


SOURCES = ("https://cache.example/{digest}", "https://cdn.example/models/{digest}")


class AnyHistory(RuleBasedStateMachine):
    """One device under a hostile world."""

    @initialize()
    def begin(self) -> None:
        self.world = World()
        self.made: list[Made] = []
        self.rollouts = 0
        self.manners = Manners()
        self.ended: dict[tuple[str, str, str, float], Phase] = {}
        self.first: set[str] = set()
        """Release digests that met no champion when they were committed."""
        self.unprobed: set[str] = set()

    # ---- the fleet

    @rule(
        conduct=st.sampled_from(CONDUCTS),
        model=st.sampled_from(("digits", "faces")),
        pairs=st.sampled_from((0, 300)),
        sources=st.sampled_from((None, SOURCES[:1], SOURCES)),
    )
    def a_new_release_is_wanted(
        self, conduct: Conduct, model: str, pairs: int, sources: tuple[str, ...] | None
    ) -> None:
        version = len(self.made) + 1
        made = self.world.add(make_release(version, conduct, model, sources))
        self.made.append(made)
        self._want(made, pairs)

    @precondition(lambda self: self.made)
    @rule(data=st.data(), purpose=st.sampled_from(("rollout", "rollback")))
    def an_earlier_release_is_wanted(self, data: st.DataObject, purpose: str) -> None:
        self._want(data.draw(st.sampled_from(self.made)), 300, purpose)

    @precondition(lambda self: self.made)
    @rule(data=st.data(), install=st.booleans())
    def a_bundle_is_imported(self, data: st.DataObject, install: bool) -> None:
        made = data.draw(st.sampled_from(self.made))
        self.rollouts += 1
        if install:
            self.unprobed.add(made.digest)
        self.world.bring(made, f"local-{self.rollouts}" if install else "")

    @precondition(lambda self: self.world.sent)
    @rule(held=st.booleans())
    def the_operator_holds_or_lets_go(self, held: bool) -> None:
        self.world.hold(held)

    @rule(manners=st.sampled_from(MANNERS))
    def orders_ask_for_other_manners(self, manners: Manners) -> None:
        self.manners = manners

    def _want(self, made: Made, pairs: int, purpose: str = "rollout") -> None:
        self.rollouts += 1
        if pairs == 0 or purpose == "rollback":
            self.unprobed.add(made.digest)
        probation = Probation(labelled_pairs=pairs, deadline_s=600)
        rollout = f"r-{self.rollouts}"
        self.world.want(made, rollout, purpose, probation, self.manners)  # type: ignore[arg-type]

    @precondition(lambda self: self.world.sent)
    @rule(data=st.data())
    def an_old_document_is_replayed_or_none_is_named(self, data: st.DataObject) -> None:
        if data.draw(st.booleans()):
            self.world.want_nothing()
        else:
            desired = data.draw(st.sampled_from(self.world.sent))
            self.world.network.append(ev.DesiredCame(desired))

    # ---- what goes on

    @rule(steps=st.sampled_from((1, 5, 20, 60, 200)))
    def things_go_on(self, steps: int) -> None:
        self.world.connect()
        self.world.go_on(steps)

    @rule(steps=st.sampled_from((20, 60, 200)), every=st.integers(2, 5))
    def things_go_on_over_a_lossy_line(self, steps: int, every: int) -> None:
        self.world.connect()
        for _ in range(steps // every):
            self.world.go_on(every)
            if self.world.network:
                self.world.network.pop(0)

    @rule(seconds=st.sampled_from((0.1, 5.0, 60.0, 700.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(short=st.booleans())
    def memory_gets_short_or_is_there_again(self, short: bool) -> None:
        self.world.memory_bytes = ENGINE_BYTES // 2 if short else 10**9

    @precondition(lambda self: self.world.engines)
    @rule(data=st.data())
    def a_run_hangs(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.world.engines)))
        model = data.draw(st.sampled_from(sorted(self.world.engines[number].releases)))
        self.world.local.append(ev.EngineHung(number, model, "stopped after 30 s"))

    @precondition(lambda self: self.world.network)
    @rule(data=st.data())
    def the_network_misbehaves(self, data: st.DataObject) -> None:
        network = self.world.network
        place = data.draw(st.integers(0, len(network) - 1))
        match data.draw(st.sampled_from(("overtake", "repeat", "join", "damage", "cut"))):
            case "overtake":
                self.world.give(network.pop(place))
            case "repeat":
                network.append(network[place])
            case "join":
                first, behind = network[place], network[place + 1 : place + 2]
                for event in behind:
                    frames = isinstance(first, ev.FramesCame) and isinstance(event, ev.FramesCame)
                    if frames and first.index == event.index:
                        network[place : place + 2] = [
                            ev.FramesCame(first.index, first.frames + event.frames)
                        ]
            case "damage":
                event = network[place]
                if isinstance(event, ev.FramesCame):
                    frame = event.frames[0]
                    noise = ChunkFrame(frame.part, frame.number, data.draw(st.binary()))
                    network[place] = ev.FramesCame(event.index, (noise, *event.frames[1:]))
                elif isinstance(event, ev.SourceFrame):
                    noise = ChunkFrame(event.frame.part, event.frame.number, data.draw(st.binary()))
                    network[place] = ev.SourceFrame(event.url, event.index, noise)
            case "cut":
                self.world.disconnect()

    @rule(source=st.sampled_from(("good", "lies", "fails", "silent", "stops midway")))
    def sources_change_their_ways(self, source: Source) -> None:
        self.world.source = source

    @rule(mishap=st.sampled_from(("kill", "kill", "stop", "disk full", "disk empty", "twin")))
    def the_device_suffers(self, mishap: str) -> None:
        match mishap:
            case "kill":
                self.world.crash()
            case "stop":
                self.world.give(ev.StopAsked())
                self.world.crash()
            case "twin":
                self.world.give(ev.TwinSeen("twin", int(self.world.wall)))
            case _:
                self.world.disk_full = mishap == "disk full"
                self.world.free_bytes = 0 if self.world.disk_full else 10**9

    @precondition(lambda self: self.world.engines)
    @rule(data=st.data(), times=st.sampled_from((1, 1, 4)))
    def an_engine_dies(self, data: st.DataObject, times: int) -> None:
        for _ in range(times):
            if self.world.engines:
                self.world.kill_engine(data.draw(st.sampled_from(sorted(self.world.engines))))
                self.world.go_on(10)

    # ---- what must hold

    @invariant()
    def what_is_committed_was_proven(self) -> None:
        journal = self.world.journal
        for deployment in journal.deployments.values():
            if deployment.phase is not Phase.COMMITTED or deployment.purpose == "fallback":
                continue
            alone = deployment.model not in journal.previous
            proven = self.world.judged | self.unprobed
            assert (
                alone
                or deployment.manifest in proven
                or "within the margin" in (deployment.detail)
                or "cannot serve" in deployment.detail
                or deployment.manifest in self.first
            )
            if alone:
                self.first.add(deployment.manifest)

    @invariant()
    def some_model_can_be_served_after_a_crash_at_any_point(self) -> None:
        journal = self.world.journal
        kept: list[Installed] = [*journal.champions.values(), *journal.previous.values()]
        for installed in kept:
            assert set(installed.files) <= set(self.world.blobs)

    @invariant()
    def a_model_once_served_never_vanishes(self) -> None:
        served = getattr(self, "served", set())
        served |= set(self.world.journal.champions)
        assert served == set(self.world.journal.champions)
        self.served = served

    @invariant()
    def what_has_ended_stays_ended(self) -> None:
        # What counts is what is on the disk: an end that never got there may happen again.
        for deployment in self.world.journal.deployments.values():
            identity = (*deployment.key, deployment.model)
            if deployment.phase.final and deployment.phase is not Phase.SUPERSEDED:
                before = self.ended.setdefault(identity, deployment.phase)  # type: ignore[arg-type]
                assert before is deployment.phase
            else:
                assert identity not in self.ended

    @invariant()
    def what_was_imported_stays_until_it_is_forgotten(self) -> None:
        for imported in self.world.imports.values():
            assert set(imported.files) <= set(self.world.blobs)

    def a_device_that_rests_listens_to_nothing(self) -> None:
        download = self.world.state.download
        if download is not None and download.resting:
            assert download.offer.index not in self.world.listening

    @invariant()
    def never_more_than_three_engines(self) -> None:
        assert len(self.world.engines) <= 3

    @invariant()
    def the_agent_sleeps_between_events(self) -> None:
        now = self.world.now()
        if next_wake(self.world.state, now) > now.mono:
            return
        # A wake that is due may lead to work, but work done must move the next wake on.
        for _ in range(3):
            self.world.give(ev.Ticked())
        assert next_wake(self.world.state, now) > now.mono

    def teardown(self) -> None:
        """Once the world is kind again, everything comes to an end."""
        world = self.world
        world.disk_full = False
        world.free_bytes = world.memory_bytes = 10**9
        if world.sent:
            world.hold(False)
        world.settle(seconds=30_000)
        assert all(d.phase.final for d in world.state.journal.deployments.values())
        if world.journal.champions and not self._hopeless():
            assert any(process.serving for process in world.engines.values())

    def _hopeless(self) -> bool:
        """Whether a champion was committed that can no longer even be loaded."""
        conducts = {made.digest: made.conduct for made in self.made}
        champions = self.world.journal.champions.values()
        return any(conducts[c.manifest] == "crashes at load" for c in champions)


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
