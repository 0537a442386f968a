# Data: fetch → prepare → requests. A source that cannot be reached is told in the file, and the rest goes on.


rule used_config:
    """The config as it was used, with every default, and the points it means."""
    output:
        config=FOLDER.root / "config.yaml",
        plan=FOLDER.root / "plan.json",
    params:
        config=CONFIG.to_dict(),
        points=[point.to_dict() for point in PLAN.points.values()],
    script:
        "../scripts/used_config.py"


rule fetch:
    """Brings the raw files of a dataset into the cache."""
    output:
        FOLDER.root / "data" / "{dataset}.fetched.json",
    # Before benchmarks, each of which has the machine for itself: trainings, too, come first, and wait for data.
    priority: 10
    resources:
        slots=1,
    shell:
        "{PYTHON} -m blast fetch {wildcards.dataset} --out {output}"


rule prepare:
    """Tokenises or unpacks a dataset; the cache keeps it for other grids."""
    input:
        FOLDER.root / "data" / "{dataset}.fetched.json",
    output:
        FOLDER.data("{dataset}"),
    priority: 10
    resources:
        slots=1,
    params:
        settings=lambda wildcards: json.dumps(PLAN.data_settings(wildcards.dataset)),
    shell:
        "{PYTHON} -m blast prepare {wildcards.dataset} --settings {params.settings:q} --fetched {input} --out {output}"


rule requests:
    """lm-eval's requests for a dataset, as token ids that any machine can score."""
    input:
        FOLDER.data("{dataset}"),
    output:
        FOLDER.stamp("requests", "{dataset}"),
    log:
        FOLDER.log("requests.{dataset}"),
    priority: 10
    resources:
        slots=1,
    params:
        tasks=lambda wildcards: PLAN.tasks(wildcards.dataset),
        first=lambda wildcards: PLAN.items(wildcards.dataset),
        code=lambda wildcards: language_fingerprint(PLAN.tasks(wildcards.dataset)),
    shell:
        "{PYTHON} -m blast requests {wildcards.dataset} --tasks {params.tasks} {params.first} --grid-dir {FOLDER.root} 2> {log} && touch {output} || {{ tail -n 20 {log} >&2; exit 1; }}"
