"""Writes the config with every default filled in, and the points of its grid: `used_config.py CONFIG.yaml PLAN.json`.

The config comes as JSON through standard input, since `--config` of Snakemake may have changed the file's values.
"""

import json
import sys
from pathlib import Path

import yaml

from blast.experiment.command_end import ended
from blast.experiment.plan.config import parse
from blast.experiment.plan.grid import expand
from blast.files import write_atomically, write_json


def main() -> int:
    config_file, plan_file = map(Path, sys.argv[1:])
    config = parse(json.load(sys.stdin), config_file)
    write_atomically(config_file, yaml.safe_dump(config.to_dict(), sort_keys=False))
    write_json(plan_file, [point.to_dict() for point in expand(config, config_file).points.values()])
    return 0


sys.exit(ended("error", main, code=1))
