# Data: fetch → prepare → requests. If a source is unreachable, the file holds the cause and the rest goes on.


rule used_config:
    """The config with every default filled in, and the points of its grid."""
    output:
        config=FOLDER.root / "config.yaml",
        plan=FOLDER.root / "plan.json",
    params:
        config=CONFIG.to_dict(),
        points=[point.to_dict() for point in PLAN.points.values()],
    script:
        "../scripts/used_config.py"


rule fetch:
    """Downloads the raw files of a dataset into the cache."""
    output:
        FOLDER.root / "data" / "{dataset}.fetched.json",
    # Data and trainings come before benchmarks, each of which has the machine to itself.
    priority: 10
    resources:
        slots=1,
    shell:
        "{PYTHON} -m blast fetch {wildcards.dataset} --out {output}"


rule prepare:
    """Tokenises or unpacks a dataset in the cache, which other grids share."""
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
    """Builds lm-eval's requests for a dataset as token ids; any machine can score them."""
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
