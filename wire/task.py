"""What a release is for: what apps send, how it becomes tensors, and what the outputs mean."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from wire.codec import Part
from wire.ids import PlainName
from wire.schema import Field, model_validator

if TYPE_CHECKING:
    from wire.manifest import TensorSpec

Name = Annotated[str, Field(min_length=1, max_length=200)]
Side = Annotated[int, Field(ge=1, le=8192)]
Numbers = Annotated[tuple[float, ...], Field(min_length=1, max_length=4)]
Stride = Annotated[int, Field(ge=1, le=1024)]
Text = Annotated[str, Field(max_length=200)]


class ImageInput(Part):
    """A JPEG or PNG becomes (pixel x scale - mean) / std, a pixel being 0 to 255."""

    kind: Literal["image"] = "image"
    name: Name = "image"
    """What apps call it in a request; datatype BYTES, one element a picture."""
    tensor: Name | None = None
    """The model's input it becomes; None: its only one."""
    layout: Literal["NHWC", "NCHW"] = "NHWC"
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    resize: Literal["stretch", "letterbox", "crop"] = "stretch"
    filter: Literal["bilinear", "bicubic", "lanczos", "box", "nearest"] = "bilinear"
    width: Side | None = None
    """Needed where the tensor's own is -1."""
    height: Side | None = None
    pad: Annotated[int, Field(ge=0, le=255)] = 0
    """Pixels beside a letterboxed picture."""
    scale: float = 1.0
    mean: Numbers = (0.0,)
    """One for all channels, or one a channel in their order; `std` likewise."""
    std: Numbers = (1.0,)

    @property
    def depth(self) -> int:
        """How many channels the tensor has."""
        return len(self.channels)

    def size(self, spec: "TensorSpec") -> tuple[int, int]:
        """Return width and height of the pictures that the tensor `spec` takes.

        Raises:
            ValueError: nobody says, or the tensor is no picture of this layout.
        """
        if len(spec.shape) != 4 or spec.shape[0] not in (1, -1):
            raise ValueError(
                f"input {spec.name}: expected a picture of shape {self.layout} with a batch of "
                f"1 or any size, got {list(spec.shape)}"
            )
        places = (2, 1, 3) if self.layout == "NHWC" else (3, 2, 1)
        wide, high, deep = (spec.shape[place] for place in places)
        if deep not in (self.depth, -1):
            raise ValueError(
                f"input {spec.name}: expected {self.depth} channels for {self.channels} in "
                f"{self.layout}, got {deep} in {list(spec.shape)}"
            )
        sides = []
        for what, made, said in (("width", wide, self.width), ("height", high, self.height)):
            if made == -1 and said is None:
                raise ValueError(f"input {spec.name}: its {what} is -1: expected task.input.{what}")
            if -1 != made != said and said is not None:
                raise ValueError(f"task.input.{what}: expected {made} as {spec.name}, got {said}")
            sides.append(made if said is None else said)
        return sides[0], sides[1]


class TextInput(Part):
    """A text or any bytes become numbers: the bytes themselves, or tokens of a vocabulary."""

    kind: Literal["text"] = "text"
    name: Name = "text"
    """What apps call it in a request; datatype BYTES, one element a text."""
    tensor: Name | None = None
    """The model's input it becomes; None: its only one."""
    encoding: Literal["bytes", "wordpiece", "words"] = "bytes"
    head: Annotated[int, Field(ge=0, le=65536)] = 0
    """Bytes: so many from the beginning, padded behind; 0 and no `tail`: all that fit."""
    tail: Annotated[int, Field(ge=0, le=65536)] = 0
    """Bytes: so many from the end, padded in front, after those of the head."""
    block: Annotated[int, Field(ge=1, le=2**24)] | None = None
    """Bytes: how far head and tail may reach into the text, before white space is stripped."""
    strip: bool = False
    """Bytes: white space before the head and behind the tail does not count."""
    pad: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """The number that stands for nothing."""
    shortest: Annotated[int, Field(ge=0, le=65536)] = 0
    """Bytes that a text must have, stripped, to be answered at all."""
    vocabulary: PlainName | None = None
    """Tokens: a file of the release, one token a line, its number the line's, from 0."""
    lower: bool = False
    """Tokens: in lower case, without accents."""
    length: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Tokens: so many; needed where the tensor's own is -1."""
    first: Text | None = None
    """Tokens: the one before all others, such as [CLS]."""
    last: Text | None = None
    """Tokens: the one behind the text, such as [SEP]."""
    unknown: Text | None = None
    """Tokens: the one for what the vocabulary lacks; None: such words are left out."""
    mask: Name | None = None
    """The model's input that is 1 where there is a token and 0 where there is none."""
    segments: Name | None = None
    """The model's input that is 0 everywhere, since there is one text."""


class Column(Part):
    """One column of a table, and the features it becomes."""

    name: Name
    kind: Literal["number", "category"] = "number"
    missing: float | Text | None = None
    """What a missing value counts as; None: it is refused."""
    mean: float = 0.0
    """Numbers: (value - mean) / std."""
    std: float = 1.0
    categories: Annotated[tuple[Text, ...], Field(max_length=1000)] = ()
    encoding: Literal["one-hot", "number"] = "one-hot"
    """Categories: a feature each, 1 or 0; or their place in the list."""
    unknown: Literal["refuse", "zero"] = "refuse"
    """A category that is not in the list: refused; or all features 0, the number -1."""

    @property
    def features(self) -> int:
        """How many numbers the column becomes."""
        one_hot = self.kind == "category" and self.encoding == "one-hot"
        return len(self.categories) if one_hot else 1

    @model_validator(mode="after")
    def _agree(self) -> "Column":
        known = self.categories
        if self.kind == "category" and (not known or len(set(known)) != len(known)):
            raise ValueError(f"column {self.name}: expected different categories, got {known!r}")
        if self.kind == "number" and (isinstance(self.missing, str) or known or not self.std):
            raise ValueError(
                f"column {self.name}: a number has no categories, a number or nothing for "
                f"missing, and a std other than 0; got {self.missing!r}, {self.std:g}"
            )
        if self.kind == "category" and self.missing is not None and self.missing not in known:
            raise ValueError(
                f"column {self.name}: missing: expected one of its categories, got {self.missing!r}"
            )
        return self


class TableInput(Part):
    """A row of named columns becomes a vector of features, in the order of the columns."""

    kind: Literal["table"] = "table"
    name: Name = "row"
    """What apps call it in a request; datatype BYTES, one element a row as a JSON object."""
    tensor: Name | None = None
    """The model's input it becomes; None: its only one."""
    columns: Annotated[tuple[Column, ...], Field(min_length=1, max_length=1000)]


class Anchors(Part):
    """Where boxes are counted from: a file of the release, or a grid for every stride."""

    file: PlainName | None = None
    """NumPy .npy, FP32 (anchors, 2 or 4): centre x and y, width and height, 0 to 1."""
    strides: Annotated[tuple[Stride, ...], Field(max_length=16)] = ()
    """Of the layers in pixels, fine to coarse; equal ones in a row share a grid."""
    offset: float = 0.5
    """Of a centre in its cell."""
    min_scale: float = 1.0
    max_scale: float = 1.0
    aspect_ratios: Annotated[tuple[float, ...], Field(min_length=1, max_length=16)] = (1.0,)
    interpolated_aspect_ratio: float | None = None
    """One more anchor a layer, of a scale between it and the next; None: none."""
    fixed_size: bool = False
    """All anchors are 1 wide and high; only their centres differ."""

    @model_validator(mode="after")
    def _agree(self) -> "Anchors":
        if (self.file is None) == (not self.strides):
            raise ValueError("anchors: expected either file or strides")
        return self

    def count(self, width: int, height: int) -> int:
        """Return how many anchors the strides make on an input of this size."""
        each = len(self.aspect_ratios) + (self.interpolated_aspect_ratio is not None)
        return sum(each * -(-width // stride) * -(-height // stride) for stride in self.strides)


class Detection(Part):
    """How boxes and scores become detections; `Task.scores` names the scores."""

    boxes: Name
    """The output with the boxes, shape (batch, anchors, 4 + 2 x points)."""
    form: Literal["centre", "corners"] = "centre"
    """The four numbers: centre and size, or first and last corner."""
    axes: Literal["xy", "yx"] = "xy"
    """Which comes first, of every pair of numbers."""
    anchors: Anchors | None = None
    """None: the boxes stand for themselves."""
    centre_scale: Annotated[float, Field(gt=0)] = 1.0
    """Boxes: the input's size where they are in pixels. Anchored: what offsets are divided by."""
    size_scale: Annotated[float, Field(gt=0)] = 1.0
    """The same for width and height, where the form is `centre`."""
    exponential: bool = False
    """Anchored sizes are logarithms."""
    points: Annotated[int, Field(ge=0, le=256)] = 0
    """Key points behind the four numbers, coded as centres are."""
    classes: Name | None = None
    """The output with the class of every box, where scores are one a box; shape as the scores."""
    background: bool = False
    """The first score is that of no object; labels begin with the second."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Logits are kept within plus and minus this."""
    overlap: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Boxes of one class that share more of their union are one detection."""
    merge: Literal["weighted", "best"] = "weighted"
    """Such boxes are averaged by score; or the best one stays as it is."""
    candidates: Annotated[int, Field(ge=1, le=10_000)] = 1000
    """Boxes above the threshold that are looked at, the best first."""
    most: Annotated[int, Field(ge=1, le=1000)] = 100
    """Detections in an answer."""


class Task(Part):
    """What the outputs mean, so that a device can tell right from wrong, and what apps may send."""

    kind: Literal["classification", "detection", "tensor"] = "tensor"
    scores: str | None = None
    """The output with one score a class: (batch, classes), or (batch, anchors, classes)."""
    scores_are: Literal["logits", "probabilities"] = "probabilities"
    """Logits: softmax makes probabilities of them, and in a detection the logistic function."""
    input: Annotated[ImageInput | TextInput | TableInput, Field(discriminator="kind")] | None = None
    """What apps may send in place of the model's own inputs; None: nothing else."""
    detection: Detection | None = None
    top: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Classes in an answer; None: 5."""
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """What scores less is left out of an answer; None: 0, and 0.5 in a detection."""
    label_map: Annotated[dict[Text, Text], Field(max_length=1000)] | None = None
    """A label -> what answers call it."""
    tolerance: Annotated[float, Field(ge=0)] | None = None
    """Numbers: how far from the true one an answer may be to be right; None: nothing is."""
    iou: Annotated[float, Field(gt=0, le=1)] | None = None
    """Detections: the share of their union that a found and a true box have in common to be the
    same one; None: 0.5."""

    def files(self) -> tuple[str, ...]:
        """Return the names of the release's files that the task needs."""
        named = []
        if isinstance(self.input, TextInput):
            named.append(self.input.vocabulary)
        if self.detection is not None and self.detection.anchors is not None:
            named.append(self.detection.anchors.file)
        return tuple(name for name in named if name is not None)

    def fed(self, inputs: Sequence["TensorSpec"]) -> dict[str, "TensorSpec"]:
        """Return the model's inputs that `input` feeds, by part: tensor, mask, segments.

        Raises:
            ValueError: they are not all of the model's inputs.
        """
        assert self.input is not None
        by_name = {spec.name: spec for spec in inputs}
        wanted = {"tensor": self.input.tensor or inputs[0].name}
        if isinstance(self.input, TextInput):
            more = {"mask": self.input.mask, "segments": self.input.segments}
            wanted |= {part: name for part, name in more.items() if name is not None}
        if sorted(wanted.values()) != sorted(by_name):
            raise ValueError(
                f"task.input feeds {sorted(wanted.values())}: expected all of the model's inputs, "
                f"{sorted(by_name)}; name them under task.input"
            )
        return {part: by_name[name] for part, name in wanted.items()}

    def check(
        self, inputs: Sequence["TensorSpec"], outputs: Sequence["TensorSpec"], files: set[str]
    ) -> None:
        """Compare with a model's tensors and with the names of the release's files.

        Raises:
            ValueError: they do not go together; the message says what was expected.
        """
        missing = [name for name in self.files() if name not in files]
        if missing:
            raise ValueError(f"task: expected {missing[0]} among the files, got {sorted(files)}")
        if (self.kind == "detection") != (self.detection is not None):
            raise ValueError(
                f"task: kind {self.kind}: expected task.detection for a detection and for no other"
            )
        if self.kind == "tensor" and (self.top or self.threshold or self.label_map):
            raise ValueError("task: top, threshold and label_map: expected a task with classes")
        if self.tolerance is not None and self.kind != "tensor":
            raise ValueError("task.tolerance: expected a task without classes")
        if self.iou is not None and self.kind != "detection":
            raise ValueError("task.iou: expected a detection")
        if self.input is not None:
            self._check_input(inputs)
        if self.detection is not None:
            self._check_detection(self.detection, inputs, outputs)

    def _check_input(self, inputs: Sequence["TensorSpec"]) -> None:
        given = self.input
        assert given is not None
        parts = self.fed(inputs)
        spec = parts["tensor"]
        if any(part.datatype in ("BYTES", "BOOL") for part in parts.values()):
            raise ValueError(
                f"task.input: expected inputs of numbers, got {spec.name} {spec.datatype}; apps "
                "send such a model its texts as they are"
            )
        match given:
            case ImageInput():
                given.size(spec)
                for what, numbers in (("mean", given.mean), ("std", given.std)):
                    if len(numbers) not in (1, given.depth):
                        raise ValueError(
                            f"task.input.{what}: expected 1 or {given.depth} numbers for "
                            f"{given.channels}, got {len(numbers)}"
                        )
                if 0 in given.std:
                    raise ValueError("task.input.std: expected numbers other than 0")
            case TextInput():
                _check_text(given, parts)
            case TableInput():
                _check_row("features", spec, sum(column.features for column in given.columns))
                names = [column.name for column in given.columns]
                if len(set(names)) != len(names):
                    raise ValueError("task.input.columns: expected different names")

    def _check_detection(
        self,
        boxes: Detection,
        inputs: Sequence["TensorSpec"],
        outputs: Sequence["TensorSpec"],
    ) -> None:
        by_name = {spec.name: spec for spec in outputs}
        for what, name in (("detection.boxes", boxes.boxes), ("scores", self.scores),
                           ("detection.classes", boxes.classes)):  # fmt: skip
            if name not in by_name and (what != "detection.classes" or name is not None):
                raise ValueError(f"task.{what}: expected one of {list(by_name)}, got {name!r}")
        spec, scores = by_name[boxes.boxes], by_name[self.scores or ""]
        strides = boxes.anchors.strides if boxes.anchors is not None else ()
        if boxes.anchors is not None and boxes.form != "centre":
            raise ValueError("task.detection.form: expected centre where there are anchors")
        if strides and not isinstance(self.input, ImageInput):
            raise ValueError("task.detection.anchors.strides: expected task.input of kind image")
        if not spec.shape or not scores.shape:
            return  # the model file leaves them open; the trial will tell
        width = 4 + 2 * boxes.points
        if len(spec.shape) != 3 or spec.shape[2] not in (width, -1):
            raise ValueError(
                f"task.detection.boxes: expected an output of shape [batch, anchors, {width}] "
                f"with {boxes.points} points, got {spec.name} {list(spec.shape)}"
            )
        rank = 3 if boxes.classes is None else 2
        if len(scores.shape) != rank or _differ(scores.shape[1], spec.shape[1]):
            raise ValueError(
                f"task.scores: expected an output of {rank} dimensions and as many anchors as "
                f"{spec.name} {list(spec.shape)} has, got {scores.name} {list(scores.shape)}"
            )
        if boxes.anchors is None or not isinstance(self.input, ImageInput) or not strides:
            return
        made = boxes.anchors.count(*self.input.size(self.fed(inputs)["tensor"]))
        if _differ(spec.shape[1], made):
            raise ValueError(
                f"task.detection.anchors: expected {spec.shape[1]} as {spec.name} has, "
                f"the strides make {made}"
            )


def _check_text(given: TextInput, parts: dict[str, "TensorSpec"]) -> None:
    spec = parts["tensor"]
    if given.encoding == "bytes":
        if given.mask or given.segments or given.vocabulary:
            raise ValueError(
                "task.input: mask, segments and vocabulary: expected tokens, not bytes"
            )
        length = given.head + given.tail
        if length == 0 and spec.shape[-1:] in ((), (-1,)):
            raise ValueError(f"task.input: expected head and tail, since {spec.name} has no length")
        what = "bytes in head and tail" if length else "bytes"
        _check_row(what, spec, length or spec.shape[-1])
        return
    if given.vocabulary is None:
        raise ValueError("task.input.vocabulary: expected a file with one token a line")
    if given.length is None and spec.shape[-1:] in ((), (-1,)):
        raise ValueError(f"task.input.length: expected one, since {spec.name} has none")
    for part in parts.values():
        _check_row("tokens", part, given.length or spec.shape[-1])


def _check_row(what: str, spec: "TensorSpec", length: int) -> None:
    batched = len(spec.shape) == 2 and spec.shape[0] in (1, -1)
    if not batched or _differ(spec.shape[1], length):
        raise ValueError(
            f"task.input: {length} {what}: expected an input of shape [batch, {length}], got "
            f"{spec.name} {list(spec.shape)}"
        )


def _differ(one: int, other: int) -> bool:
    return one != other and -1 not in (one, other)
