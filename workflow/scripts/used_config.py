"""Writes the config with every default filled in, and the points of its grid."""

from pathlib import Path

import yaml

from blast.files import write_atomically, write_json

values = snakemake.params  # noqa: F821
write_atomically(Path(snakemake.output.config), yaml.safe_dump(values.config, sort_keys=False))  # noqa: F821
write_json(Path(snakemake.output.plan), values.points)  # noqa: F821
