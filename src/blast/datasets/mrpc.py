"""MRPC: do two sentences of the news say the same?"""

from __future__ import annotations

from blast.datasets._sentences.glue import GlueTask

LABEL = "MRPC"
MODALITY = "classification"
LICENCE = "none stated; free for research, cite Dolan 2005"
DESCRIPTION = "3668 training and 408 validation pairs of sentences, two classes"
SOURCES = ("the model hub: nyu-mll/glue",)
BYTES = 730_000
EVALUATION: list[str] = []

_DATA = GlueTask("mrpc", ("sentence1", "sentence2"))
SETTINGS, fetch, prepare, load = _DATA.settings, _DATA.fetch, _DATA.prepare, _DATA.load
