"""RTE: does a sentence follow from a text?"""

from __future__ import annotations

from blast.datasets._sentences.glue import GlueTask

LABEL = "RTE"
MODALITY = "classification"
LICENCE = "none stated; free for research, cite Wang 2018"
DESCRIPTION = "2490 training and 277 validation pairs of sentences, two classes"
SOURCES = ("the model hub: nyu-mll/glue",)
BYTES = 660_000
EVALUATION: list[str] = []

_DATA = GlueTask("rte", ("sentence1", "sentence2"))
SETTINGS, fetch, prepare, load = _DATA.settings, _DATA.fetch, _DATA.prepare, _DATA.load
