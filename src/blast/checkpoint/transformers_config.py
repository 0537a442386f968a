"""The `config.json` of a checkpoint: transformers opens the folder through `blast`, or says that it cannot.

The model type is one that transformers does not know. `blast.checkpoint.transformers_auto` registers it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blast.checkpoint.manifest import CONFIG

# Without blast, transformers raises: "... has model type `<this>` but Transformers does not recognize ...".
MODEL_TYPE = "blast_sparse: pip install blast-suite, then import blast before it is opened"
# Where a class of transformers opens the folder by itself, its error ends with the name of the file of the weights.
NOT_FOR_CONCRETE_CLASSES = (
    "this folder was written by blast.save: `import blast` and open it with AutoModelForCausalLM or its like, "
    "or blast.load"
)
WRAPPED = "wrapped_config"


def write_config(folder: Path, described: Mapping[str, Any]) -> None:
    """Writes `config.json` for a model of transformers that blast can build; for others nothing.

    Args:
        folder: The folder of the checkpoint.
        described: As `builders.describe` gives it.
    """
    if described["library"] != "transformers" or described["base"] is None:
        return
    own = {"architectures": [described["class"]], "transformers_weights": NOT_FOR_CONCRETE_CLASSES}
    content = {"model_type": MODEL_TYPE, **own, WRAPPED: described["base"]["config"] | own}
    (folder / CONFIG).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
