"""All that the controller knows, and what it answers when asked. Owned by the controller's loop."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from fleet.core import present
from fleet.core.census import Census
from fleet.core.cohort import (
    LIST_DEVICES,
    check_known,
    cut,
    nearest,
    order,
    parse_waves,
    select,
)
from fleet.core.forecast import Forecast, chosen_by, files_of, forecast
from fleet.core.rollout import Assign, Assignment, Rollout, fallback_for
from fleet.core.scores import Totals
from fleet.core.target import Target, parse_target
from fleet.core.views import (
    DeviceView,
    MannersRule,
    Refusal,
    ReleaseView,
    RolloutPlanView,
    RolloutRequest,
    RolloutView,
)
from wire.bundle import BundleSeal
from wire.codec import first_error
from wire.ids import ReleaseRef
from wire.manifest import Manifest, Variant
from wire.manners import Manners
from wire.telemetry import ScoreWindow
from wire.transfer import CHUNK_BYTES, Offer
from wire.twin import Desired, DesiredRelease, Probation

MAX_FILES = 39
"""Of one release; with its manifest these are the offers that a Desired may carry for it."""

MAX_MODELS = 16
MAX_OFFERS = 240
"""Offers of one device together: its Desired stays under the length of a message."""


@dataclass(frozen=True, slots=True)
class Release:
    """A release as it was pushed."""

    digest: str
    manifest: Manifest
    pushed_at: float


class Books:
    """Releases, devices, orders and rollouts. Methods that refuse raise Refusal."""

    def __init__(self, shared: bool = True) -> None:
        """`shared`: frames go to whole waves."""
        self._shared = shared
        self.census = Census()
        self.releases: dict[str, Release] = {}
        """By digest."""
        self.offers: dict[str, tuple[tuple[Offer, ...], ...]] = {}
        """Of a release's digest: the ways in which its manifest, then each file, can travel."""
        self.deltas: dict[tuple[str, str], tuple[Offer, ...]] = {}
        """Of a base and a file: the ways in which the one is made of the other."""
        self.assignments: dict[str, dict[str, Assignment]] = {}
        """Device -> model -> what it should run."""
        self.revisions: dict[str, int] = {}
        """Device -> revision of its latest Desired."""
        self.rollouts: dict[str, Rollout] = {}
        """By id, the oldest first."""
        self.quarantined: dict[str, str] = {}
        """Release -> why no rollout may bring it."""

    # ---- releases

    def keep_release(self, release: Release, offers: tuple[tuple[Offer, ...], ...]) -> None:
        """Take a release into the books."""
        self.releases[release.digest] = release
        self.offers[release.digest] = offers

    def same_release(self, manifest: Manifest) -> Release | None:
        """Return this very release if it is there; refuse another one of its name (409)."""
        for release in self.releases.values():
            if release.manifest.ref == manifest.ref:
                if release.digest == manifest.digest:
                    return release
                raise Refusal(
                    409,
                    f"{manifest.ref} exists with other bytes",
                    f"push it as version {self.next_version(manifest.model)}",
                )
        return None

    def next_version(self, model: str) -> int:
        """Return the version after the highest one of `model`; 1 when it is new."""
        releases = [r.manifest for r in self.releases.values() if r.manifest.model == model]
        return 1 + max((manifest.version for manifest in releases), default=0)

    def find_release(self, model: str, version: int) -> Release:
        """Return a release (404)."""
        for release in self.releases.values():
            if release.manifest.ref == ReleaseRef(model, version):
                return release
        known = {str(release.manifest.ref) for release in self.releases.values()}
        wanted = f"{model}@{version}"
        raise Refusal(404, f"no release {wanted}{nearest(wanted, known)}", "fleet model list")

    def release_view(self, model: str, version: int) -> ReleaseView:
        """Return a release with its manifest (404)."""
        return self._release_view(self.find_release(model, version), whole=True)

    def release_views(self, model: str | None) -> list[ReleaseView]:
        """Return all releases (of one model), newest version first."""
        chosen = [r for r in self.releases.values() if model in (None, r.manifest.model)]
        chosen.sort(key=lambda r: (r.manifest.model, -r.manifest.version))
        return [self._release_view(each) for each in chosen]

    def _release_view(self, release: Release, *, whole: bool = False) -> ReleaseView:
        manifest = release.manifest
        view = present.release_view(manifest, release.digest, release.pushed_at, whole=whole)
        reason = self.quarantined.get(str(manifest.ref))
        return view if reason is None else view.model_copy(update={"quarantined": reason})

    def check_free(self, release: str) -> None:
        """Refuse a release that is in quarantine (409)."""
        if release in self.quarantined:
            raise Refusal(
                409,
                f"{release} is in quarantine: {self.quarantined[release]}",
                f"fleet model release {release}",
            )

    def reported_on(
        self, model: str, version: int | None
    ) -> tuple[list[tuple[Manifest, str]], set[str]]:
        """Return a release, or all of a model, with digests, the newest first (404).

        With them come the keys of all devices' labels.
        """
        if version is not None:
            chosen = [self.find_release(model, version)]
        else:
            chosen = [r for r in self.releases.values() if r.manifest.model == model]
            chosen.sort(key=lambda r: -r.manifest.version)
        if not chosen:
            known = {r.manifest.model for r in self.releases.values()}
            raise Refusal(404, f"no model {model!r}{nearest(model, known)}", "fleet model list")
        labels = {key for d in self.census if d.reported for key in d.reported.labels}
        return [(release.manifest, release.digest) for release in chosen], labels

    def bundle_seal(
        self, model: str, version: int, device: str | None, install: bool, token: str
    ) -> BundleSeal:
        """Return what a bundle of a release says (404, 409: quarantine, 422: not a device id).

        An order to install is an act of its own, told from others by `token`.
        """
        release = self.find_release(model, version)
        self.check_free(str(release.manifest.ref))
        try:
            return BundleSeal(
                release=DesiredRelease(
                    model=model,
                    version=version,
                    rollout=f"local-{token if install else release.digest[-12:]}",
                    manifest=release.digest,
                    offers=tuple(ways[0] for ways in self.offers[release.digest]),
                    # Nobody may be there to label anything: the trial decides.
                    probation=Probation(labelled_pairs=0),
                ),
                device=device,
                install=install,
            )
        except ValidationError as error:
            raise Refusal(422, f"bundle: {first_error(error)}", LIST_DEVICES) from None

    # ---- devices

    def check_device(self, id: str) -> None:
        """Refuse a device that nobody heard of (404)."""
        if id not in self.census:
            known = [device.id for device in self.census]
            raise Refusal(404, f"no device {id!r}{nearest(id, known)}", LIST_DEVICES)

    def device_view(
        self, id: str, totals: Iterable[Totals], missing: int, now: float
    ) -> DeviceView:
        """Return a device with what its telemetry adds up to, and how much is missing (404)."""
        self.check_device(id)
        device, revision = self.census.get(id), self.revisions.get(id, 0)
        return present.device_view(device, revision, totals, missing, now)

    def counts(self, window: ScoreWindow) -> bool:
        """Return whether a window is of a release that we know."""
        release = self.releases.get(window.manifest)
        return release is not None and any(
            variant.name == window.variant for variant in release.manifest.variants
        )

    # ---- orders

    def orders(self, device: str) -> dict[str, Assignment]:
        """Return what a device should run, by model."""
        return self.assignments.get(device, {})

    def ordered(self, orders: Iterable[Assign]) -> dict[str, dict[str, Assignment]]:
        """Return what the devices concerned should run after these orders; nothing changes yet."""
        after: dict[str, dict[str, Assignment]] = {}
        for each in orders:
            models = after.setdefault(each.device, dict(self.orders(each.device)))
            if each.assignment is None:
                models.pop(each.model, None)
            else:
                models[each.model] = each.assignment
        return after

    def desired(self, device: str, assignments: dict[str, Assignment]) -> Desired:
        """Return the next document for a device: newer than any that it, or we, know of."""
        known = max(self.revisions.get(device, 0), self.census.get(device).revision)
        return Desired(
            device=device,
            revision=known + 1,
            shared=self._shared,
            releases=tuple(
                DesiredRelease(
                    model=each.model,
                    version=each.version,
                    rollout=each.rollout,
                    purpose=each.purpose,
                    manifest=each.manifest,
                    offers=self._fitting(device, each.manifest),
                    probation=each.probation,
                    manners=each.manners,
                )
                for each in assignments.values()
            ),
        )

    def _fitting(self, device: str, release: str) -> tuple[Offer, ...]:
        """Return each file in the largest chunks that the device can take."""
        reported = self.census.get(device).reported
        limit = reported.capabilities.max_chunk_bytes if reported else CHUNK_BYTES
        held = self._held(device)
        fitting = []
        for plain in self.offers[release]:
            deltas = [self.deltas.get((base, plain[0].file), ()) for base in held]
            for ways in (*filter(None, deltas), plain):
                fits = (offer for offer in ways if offer.chunk_bytes <= limit)
                fitting.append(next(fits, ways[-1]))
        return tuple(fitting)

    def _held(self, device: str) -> list[str]:
        """Return the artifacts that serve on a device: what a delta may rest on."""
        return [variant.artifact.digest for _, variant in self._serving(device)]

    def _serving(self, device: str) -> list[tuple[str, Variant]]:
        """Return model and variant of what serves on a device, as far as it was pushed here."""
        reported = self.census.get(device).reported
        found = []
        for serving in reported.serving if reported else ():
            release = self.releases.get(serving.manifest)
            variants = release.manifest.variants if release else ()
            found += [(serving.model, v) for v in variants if v.name == serving.variant]
        return found

    def delta_pairs(self, request: RolloutRequest, now: float) -> set[tuple[str, str]]:
        """Return the bases on the devices meant, each with the file that is to come of it.

        Raises:
            Refusal: as for the rollout itself.
        """
        plan = self.plan(request, now)
        variants = self.releases[plan.manifest].manifest.variants
        pairs = {
            (base.artifact.digest, new.artifact.digest)
            for wave in plan.waves
            for device in wave
            for model, base in self._serving(device)
            for new in variants
            if model == plan.model and new.format == base.format
        }
        return {(base, new) for base, new in pairs if base != new} - self.deltas.keys()

    def offered(self, device: str) -> list[Offer]:
        """Return all that a device may fetch, in chunks of any size.

        It may come back with another limit than the one its document was made for.
        """
        releases = [each.manifest for each in self.orders(device).values()]
        ways = [ways for digest in releases for ways in self.offers[digest]]
        files = {each[0].file for each in ways}
        ways += [each for (_, file), each in self.deltas.items() if file in files]
        return [offer for each in ways for offer in each]

    # ---- rollouts

    def find_rollout(self, id: str) -> Rollout:
        """Return a rollout (404)."""
        if id not in self.rollouts:
            raise Refusal(
                404, f"no rollout {id!r}{nearest(id, self.rollouts)}", "fleet rollout status"
            )
        return self.rollouts[id]

    def rollout_view(self, id: str, now: float) -> RolloutView:
        """Return a rollout with its devices (404)."""
        return present.rollout_view(self.find_rollout(id), self.census, now, with_devices=True)

    def to_take_back(self, id: str) -> set[str]:
        """Return the devices that still run a rollout's release by its order (404).

        409: none does, none has anything to go back to, or another rollout of the model, which
        would take them for its own way back, is under way.
        """
        rollout = self.find_rollout(id)
        for other in self.active():
            if other.model == rollout.model and other.id != id:
                raise Refusal(
                    409,
                    f"{id}: {other.id} is bringing {other.release} to devices of this model",
                    f"fleet rollout abort {other.id}, and then this again",
                )
        ordered = {
            device
            for device in rollout.told
            if (own := self.orders(device).get(rollout.model)) is not None
            and (own.rollout, own.manifest) == (rollout.id, rollout.manifest)
        }
        if rollout.status.final and rollout.status != "aborted":
            if not ordered:
                why = "all its devices were told something else since"
                raise Refusal(409, f"{id}: {why}", "fleet rollout list")
            if not any(rollout.previous.get(device) for device in ordered):
                raise Refusal(
                    409,
                    f"{id}: there is no release before {rollout.release} to go back to",
                    "push another version, and fleet rollout start",
                )
        return ordered

    def active(self) -> list[Rollout]:
        """Return the rollouts that are not over."""
        return [each for each in self.rollouts.values() if not each.status.final]

    def plan(self, request: RolloutRequest, now: float) -> Rollout:
        """Return a new rollout of which nobody was told yet.

        404: no such release or device; 422: a target, waves or a limit that make no sense, or
        waves too small to decide that could be larger.
        """
        rollout = self._draft(request, now)
        refused = present.small_waves(rollout, request.approve_small_waves)
        if refused is not None:
            raise refused
        return rollout

    def plan_view(self, request: RolloutRequest, now: float) -> RolloutPlanView:
        """Return what a rollout would be (404, 422: as for the rollout itself)."""
        draft = self._draft(request, now)
        costs = {id: self._forecast(id, draft) for wave in draft.waves for id in wave}
        return present.plan_view(draft, request, costs, self.census, now)

    def _forecast(self, device: str, rollout: Rollout) -> Forecast:
        release, known = self.releases[rollout.manifest], self.census.get(device)
        serving = known.reported.serving if known.reported else ()
        held, clearable = set[str](), dict[str, int]()
        for each in serving:
            there = self.releases.get(each.manifest)
            for variant in there.manifest.variants if there else ():
                if there is not None and variant.name == each.variant:
                    held.update(files_of(there.manifest, there.digest, variant))
            clearable |= self._served_before(device, each.model)
        before = self._served_before(device, rollout.model)
        going = {file: size for file, size in clearable.items() if file not in held}
        return forecast(
            release.manifest,
            release.digest,
            self._fitting(device, release.digest),
            known,
            held | before.keys(),
            sum(size for file, size in going.items() if file not in before),
        )

    def _served_before(self, device: str, model: str) -> dict[str, int]:
        """Return the files, with sizes, that a device keeps of what it would go back to."""
        current = self.orders(device).get(model)
        past = self.rollouts.get(current.rollout) if current is not None else None
        earlier = past.previous.get(device) if past is not None else None
        release = self.releases.get(earlier.manifest) if earlier is not None else None
        if release is None or (current is not None and release.digest == current.manifest):
            return {}
        variant = chosen_by(release.manifest, self.census.get(device))
        if not isinstance(variant, Variant):
            return {}
        sizes = {file.digest: file.size_bytes for file in release.manifest.all_files()}
        return {f: sizes.get(f, 0) for f in files_of(release.manifest, release.digest, variant)}

    def _draft(self, request: RolloutRequest, now: float) -> Rollout:
        try:
            ref = ReleaseRef.parse(request.release)
        except ValueError as error:
            raise Refusal(422, f"release: {error}", "fleet model list") from None
        limit = request.max_refused_percent
        if limit is not None and not 0 <= limit <= 100:
            raise Refusal(422, f"max_refused_percent: expected 0 to 100, got {limit}")
        release = self.find_release(ref.model, ref.version)
        self.check_free(str(release.manifest.ref))
        facts = {device.id: device.facts for device in self.census}
        devices = select(parse_target(request.to), facts)
        manners = Manners(bytes_per_s=request.bytes_per_s, windows=request.windows)
        rules = [(parse_target(rule.to), rule) for rule in request.rules]
        for target, _ in rules:
            check_known(target, facts)
        ruled = {id: _manners_of(facts[id], manners, rules) for id in devices}
        counts = parse_waves(request.waves, len(devices))
        for device in devices:
            self._check_capacity(device, release)
        last = max((int(each.removeprefix("r-")) for each in self.rollouts), default=0)
        id = f"r-{last + 1}"
        return Rollout(
            id=id,
            model=ref.model,
            version=ref.version,
            manifest=release.digest,
            to=request.to,
            shares=request.waves,
            waves=cut(order(id, devices), counts),
            previous={device: self._way_back(device, ref.model) for device in devices},
            started_at=now,
            probation=request.probation,
            manners=manners,
            manners_of={id: each for id, each in ruled.items() if each != manners},
            spread_s=request.spread_s,
            max_refused_percent=limit,
            judged_by=request.judged_by,
        )

    def _way_back(self, device: str, model: str) -> Assignment | None:
        current = self.orders(device).get(model)
        return fallback_for(self.census.get(device), current, self.rollouts)

    def _check_capacity(self, device: str, release: Release) -> None:
        others = [a for m, a in self.orders(device).items() if m != release.manifest.model]
        offers = sum(len(self.offers[each.manifest]) for each in others)
        if len(others) >= MAX_MODELS or offers + len(self.offers[release.digest]) > MAX_OFFERS:
            raise Refusal(
                422,
                f"{device} has {len(others)} other models of {offers} files; expected at most "
                f"{MAX_MODELS} models and {MAX_OFFERS} files together",
                f"fleet device show {device}",
            )


def _manners_of(
    facts: Mapping[str, str], manners: Manners, rules: Iterable[tuple[Target, MannersRule]]
) -> Manners:
    """Return how one device fetches: as the first rule for it says, or else as all do."""
    for target, rule in rules:
        if target.matches(facts):
            return Manners(
                bytes_per_s=rule.bytes_per_s or manners.bytes_per_s,
                windows=rule.windows or manners.windows,
            )
    return manners
