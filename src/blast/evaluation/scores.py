"""Scores of evaluation requests in a file, with the digest of the requests."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from blast.errors import BlastError
from blast.evaluation.requests import LARGEST, RequestFile, compress
from blast.files import write_atomically
from blast.untrusted import gunzip, read_bytes

FORMAT = 1


class Score(NamedTuple):
    """The score of one request: the sum of log-probabilities (nats), and whether greedy decoding gives the text."""

    logprob: float
    greedy: bool


@dataclass(frozen=True)
class ScoreFile:
    """One score for each request, in the order of the requests.

    Attributes:
        requests: Digest of the request file.
        scores: The scores.
        settings: How the scores were made (window, batch size, dtype).
    """

    requests: str
    scores: list[Score]
    settings: dict[str, Any] = field(default_factory=dict)

    def write(self, file: Path) -> None:
        """Writes the file atomically, gzipped if its name ends in `.gz`. The same scores give the same bytes."""
        values = {"format": FORMAT, "requests": self.requests, "settings": self.settings, "scores": self.scores}
        text = json.dumps(values, separators=(",", ":"), allow_nan=False) + "\n"
        write_atomically(file, compress(text) if str(file).endswith(".gz") else text)

    def check_against(self, requests: RequestFile, source: str = "scores") -> None:
        """Checks that the scores belong to `requests`.

        Raises:
            BlastError: if the digest or the number of requests differs, or a score is not finite.
        """
        if self.requests != requests.digest:
            raise BlastError(
                f"{source}: made for other requests ({self.requests[:19]}…) than these ({requests.digest[:19]}…); "
                "score the present requests again."
            )
        if len(self.scores) != len(requests):
            raise BlastError(f"{source}: {len(self.scores)} scores for {len(requests)} requests; score them again.")
        require_finite(self.scores, source)


def write_scores(
    file: Path, requests: RequestFile, scores: list[Score], settings: dict[str, Any] | None = None
) -> ScoreFile:
    """Writes the scores of these requests; see `ScoreFile.write`."""
    found = ScoreFile(requests.digest, scores, settings or {})
    found.write(file)
    return found


def require_finite(scores: list[Score], source: str = "scores") -> None:
    """Raises a BlastError if a score is not finite; the message counts them."""
    bad = sum(not math.isfinite(s.logprob) for s in scores)
    if bad:
        raise BlastError(
            f"{source}: {bad} of {len(scores)} log-likelihoods are not finite; look at the model's training loss."
        )


def read_scores(file: Path) -> ScoreFile:
    """Reads a score file.

    Raises:
        BlastError: if it is missing, damaged, or of another format.
    """
    file = Path(file)
    remedy = "delete it and score the requests again."
    try:
        content = read_bytes(file, LARGEST)
        values = json.loads(gunzip(content, LARGEST) if content[:2] == b"\x1f\x8b" else content)
        found = ScoreFile(
            values["requests"], [Score(float(p), bool(g)) for p, g in values["scores"]], values["settings"]
        )
    except FileNotFoundError as error:
        raise BlastError(f"{file}: this score file does not exist; score the requests first.") from error
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BlastError(f"{file}: this score file is damaged or half-written; {remedy}") from error
    if values.get("format") != FORMAT:
        raise BlastError(
            f"{file}: its format {values.get('format')} is not the format {FORMAT} of this version; {remedy}"
        )
    return found
