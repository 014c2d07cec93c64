"""A task that needs a library which is not there is refused before a byte of the model comes."""

import pytest

from tests.agent.core.test_choice import ABLE, manifest, variant
from tests.agent.core.world import World, make_release, phase_of
from wire.libraries import lacking
from wire.manifest import Manifest
from wire.stream import Features, Stream
from wire.task import ImageInput, Task, TextInput
from wire.twin import Capabilities, Phase, Reason

PLAIN = manifest(variant())
PICTURES = PLAIN.model_copy(update={"task": Task(input=ImageInput())})
TEXTS = PLAIN.model_copy(update={"task": Task(input=TextInput())})
SOUND = PLAIN.model_copy(update={"stream": Stream(rate_hz=16000, frame=512)})
FEATURES = PLAIN.model_copy(
    update={
        "stream": Stream(
            rate_hz=16000,
            frame=3,
            features=Features(extractor="pymicro-features", version="2.0"),
        )
    }
)


def able(libraries: dict[str, str] | None, **unusable: str) -> Capabilities:
    return ABLE.model_copy(update={"libraries": libraries, "unusable": unusable})


@pytest.mark.parametrize(
    ("release", "there", "says"),
    [
        (PICTURES, able({}),
         "the task takes pictures and needs Pillow; here: not installed: "
         "pip install 'farflung[vision]'"),
        (PICTURES, able({"pymicro-features": "2.0.2"}, Pillow="no JPEG"),
         "the task takes pictures and needs Pillow; here: unusable: no JPEG"),
        (FEATURES, able({"Pillow": "11.0"}),
         "the task takes features of sound and needs pymicro-features 2.0; here: not installed: "
         "pip install 'farflung[audio]'"),
        (FEATURES, able({"pymicro-features": "1.9"}),
         "the task needs pymicro-features 2.0; here: 1.9"),
        (FEATURES, able({"pymicro-features": "2.0.2"}), ""),
        (PICTURES, able({"Pillow": "11.0"}), ""),
        (PICTURES, able(None), ""),
        (FEATURES, able(None), ""),
        (PLAIN, able({}), ""),
        (TEXTS, able({}), ""),
        (SOUND, able({}), ""),
    ],
)  # fmt: skip
def test_the_refusal_says_what_is_needed_and_what_there_is(
    release: Manifest, there: Capabilities, says: str
) -> None:
    assert lacking(release, there) == says


def test_a_refused_task_costs_the_device_its_manifest_and_no_more() -> None:
    world = World()
    made = make_release(1, task=Task(input=ImageInput()), shape=(-1, 8, 8, 3))
    world.state.capabilities = able({})
    world.want(world.add(made), "r-1")

    world.settle()

    assert phase_of(world) == (Phase.REJECTED, Reason.NO_RUNTIME)
    assert "needs Pillow" in world.reports[-1].deployments[0].detail
    assert set(world.blobs) <= {made.digest}
