"""SST-2: is a sentence of a film review for or against?"""

from __future__ import annotations

from blast.datasets._sentences.glue import GlueTask

LABEL = "SST-2"
MODALITY = "classification"
LICENCE = "none stated; free for research, cite Socher 2013"
DESCRIPTION = "67349 training and 872 validation sentences of film reviews, two classes"
SOURCES = ("the model hub: nyu-mll/glue",)
BYTES = 3_200_000
EVALUATION: list[str] = []

_DATA = GlueTask("sst2", ("sentence",))
SETTINGS, fetch, prepare, load = _DATA.settings, _DATA.fetch, _DATA.prepare, _DATA.load
