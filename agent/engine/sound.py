"""Sound as bytes: 16-bit PCM, perhaps with the head of a WAV file before it."""

import io
import wave

import numpy as np

from agent.engine.errors import bad_request
from agent.engine.runtimes import Array


class Pcm:
    """Bytes of one stream in pieces of any length; half a sample waits for its other half."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._begun = False
        self._rest = b""
        self._left: int | None = None
        """Bytes of sound that the head still promises; what follows them is no sound."""

    def samples(self, raw: bytes) -> Array:
        """Return the INT16 samples that `raw` completes.

        Raises:
            HttpError: the head of a WAV file says that it is something else.
        """
        if not self._begun and raw:
            if raw.startswith(b"RIFF"):
                raw, self._left = self._headless(raw)
            self._begun = True
        if self._left is not None:
            raw = raw[: self._left]
            self._left -= len(raw)
        raw = self._rest + raw
        whole = len(raw) - len(raw) % 2
        self._rest = raw[whole:]
        return np.frombuffer(raw[:whole], "<i2").astype(np.int16, copy=False)

    def _headless(self, raw: bytes) -> tuple[bytes, int]:
        try:
            with wave.open(io.BytesIO(raw)) as file:
                form = (file.getnchannels(), 8 * file.getsampwidth(), file.getframerate())
                length = file.getnframes() * file.getnchannels() * file.getsampwidth()
                sound = file.readframes(file.getnframes())
        except (wave.Error, EOFError) as error:
            raise bad_request(f"sound: expected the whole head of a WAV file: {error}") from None
        if form != (1, 16, self._rate_hz):
            raise bad_request(
                f"sound: expected one channel of 16 bits at {self._rate_hz} Hz, got {form[0]} of "
                f"{form[1]} bits at {form[2]} Hz; convert it, for example: ffmpeg -i FILE -ac 1 "
                f"-ar {self._rate_hz} -c:a pcm_s16le -f wav -"
            )
        return sound, length
