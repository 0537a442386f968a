# Data: fetch → prepare → requests. If a source is unreachable, the file holds the cause and the rest goes on.


rule used_config:
    """The config with every default filled in, and the points of its grid."""
    output:
        config=FOLDER.root / "config.yaml",
        plan=FOLDER.plan,
    params:
        config=json.dumps(CONFIG.to_dict()),
        points=[point.to_dict() for point in PLAN.points.values()],
    shell:
        "printf %s {params.config:q} | {PYTHON:q} {SCRIPTS:q}/used_config.py {output:q}"


rule fetch:
    """Downloads the raw files of a dataset into the cache."""
    output:
        FOLDER.root / "data" / "{dataset}.fetched.json",
    # Data and trainings come before benchmarks, each of which has the machine to itself.
    priority: 10
    resources:
        slots=1,
    shell:
        "{BLAST:q} fetch {wildcards.dataset:q} --out {output:q}"


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
        "{BLAST:q} prepare {wildcards.dataset:q} --settings {params.settings:q} --fetched {input:q} --out {output:q}"


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
        options=lambda wildcards: PLAN.items(wildcards.dataset),
        code=lambda wildcards: language_fingerprint(PLAN.tasks(wildcards.dataset)),
    shell:
        "{BLAST:q} requests {wildcards.dataset:q} --tasks {params.tasks:q} {params.options:q} --grid-dir {FOLDER.root:q} 2> {log:q} && touch {output:q} || {{ tail -n 20 {log:q} >&2; exit 1; }}"
