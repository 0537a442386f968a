"""The profile of Kubernetes plans a grid: what each pod would ask for. No cluster is asked."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from patience import PATIENCE
from workflow_place import ROOT, Place

PAGE = (ROOT / "docs" / "slurm.md").read_text()
PROFILE = yaml.safe_load((ROOT / "profiles" / "kubernetes" / "config.yaml").read_text())


@pytest.mark.slow
def test_the_dry_run_of_the_docs_plans_pods_with_their_memory_and_gpus(tmp_path):
    pytest.importorskip("snakemake_executor_plugin_kubernetes")
    pytest.importorskip("snakemake_storage_plugin_fs")
    place = Place(tmp_path / "place")
    (command,) = re.findall(r"^snakemake (--profile profiles/kubernetes .*-n .*)$", PAGE, re.MULTILINE)
    words = command.replace("$PWD", str(place.folder)).split()
    done = subprocess.run(
        [place.python, "-m", "snakemake", *words, "--resources", "gpus=2", "--quiet", "host"],
        cwd=place.folder,
        env={**os.environ, "BLAST_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    # Each rule with what it asks for.
    asked = dict(re.findall(r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", said, re.MULTILINE))
    for rule in ("point", "benchmark"):
        found = dict(value.split("=", 1) for value in asked[rule].split(", "))
        assert (found["gpu"], found["gpu_manufacturer"], found["scale"]) == ("1", "nvidia", "0")
        assert (found["mem_mb"], found["runtime"]) == ("1500", "60")
    assert " gpu=" not in asked["prepare"]
    assert "download" in asked
    assert not (place.folder / "results").exists()


def test_the_profile_names_the_volume_and_the_cache_that_the_docs_and_the_image_name():
    image = (ROOT / "workflow" / "container" / "Dockerfile").read_text()
    (volume,) = PROFILE["kubernetes-persistent-volumes"]
    folder = volume.partition(":")[2]
    assert PROFILE["default-storage-prefix"].startswith(f"{folder}/")
    assert f"BLAST_CACHE={folder}/cache" in image
    assert f"export BLAST_CACHE={folder}/cache" in PAGE
    assert PROFILE["envvars"] == ["BLAST_CACHE"]
    # The image is built of files that are there.
    for name in re.findall(r"^COPY (\S+) ", image, re.MULTILINE):
        assert (ROOT / name).exists()
    assert Path(ROOT / ".dockerignore").is_file()
