# Data: fetch → prepare → requests. If a source is unreachable, the file holds the cause and the rest goes on.


rule used_config:
    """The config with every default filled in, and the points of its grid."""
    output:
        touch(stamp("plan", "plan")),
    params:
        config=json.dumps(CONFIG.to_dict()),
    shell:
        "printf %s {params.config:q} | {PYTHON:q} {SCRIPTS:q}/used_config.py {FOLDER.config:q} {FOLDER.plan:q}"


def planned():
    """The stamp of the config and the points, if they are to be written."""
    return [stamp("plan", "plan")] if TODO.plan else []


rule download:
    """On a cluster, whose jobs never download: fetches all that the grid needs, weights and evaluation sets too."""
    input:
        planned(),
    output:
        touch(stamp("fetch", "all")),
    log:
        FOLDER.log("download"),
    priority: 10
    resources:
        slots=1,
    shell:
        # What cannot be fetched fails only the points that need it; each of them says why.
        "{BLAST:q} fetch {FOLDER.config:q} > {log:q} 2>&1 || true"


def downloaded():
    """The stamp of all downloads, if the jobs cannot download for themselves."""
    return [stamp("fetch", "all")] if on_cluster() else []


rule fetch:
    """Downloads the raw files of a dataset into the cache."""
    output:
        touch(stamp("fetch", "{dataset}")),
    # Data and trainings come before benchmarks, each of which has the machine to itself.
    priority: 10
    resources:
        slots=1,
    params:
        facts=lambda wildcards: FOLDER.fetched(wildcards.dataset),
    shell:
        "{BLAST:q} fetch {wildcards.dataset:q} --out {params.facts:q}"


rule prepare:
    """Tokenises or unpacks a dataset in the cache, which other grids share."""
    input:
        stamp("fetch", "{dataset}"),
        lambda wildcards: downloaded(),
    output:
        touch(stamp("prepare", "{dataset}")),
    priority: 10
    resources:
        slots=1,
        mem_mb=MEMORY,
    params:
        settings=lambda wildcards: json.dumps(PLAN.data_settings(wildcards.dataset)),
        fetched=lambda wildcards: FOLDER.fetched(wildcards.dataset),
        facts=lambda wildcards: FOLDER.data(wildcards.dataset),
    shell:
        "{BLAST:q} prepare {wildcards.dataset:q} --settings {params.settings:q} --fetched {params.fetched:q} --out {params.facts:q}"


def prepared(datasets):
    """The stamps of datasets that are to be prepared."""
    return [stamp("prepare", dataset) for dataset in datasets if dataset in TODO.datasets]


rule requests:
    """Builds lm-eval's requests for a dataset as token ids; any machine can score them. The key says of what."""
    input:
        lambda wildcards: prepared([wildcards.dataset]),
        lambda wildcards: downloaded(),
    output:
        touch(stamp("requests", "{dataset}")),
    log:
        FOLDER.log("requests.{dataset}"),
    priority: 10
    resources:
        slots=1,
        mem_mb=MEMORY,
    params:
        tasks=lambda wildcards: PLAN.tasks(wildcards.dataset),
        options=lambda wildcards: PLAN.items(wildcards.dataset),
        key=lambda wildcards: requests_key(wildcards.dataset, PLAN),
        file=lambda wildcards: FOLDER.requests_key(wildcards.dataset),
    shell:
        "{BLAST:q} requests {wildcards.dataset:q} --tasks {params.tasks:q} {params.options:q} --grid-dir {FOLDER.root:q} 2> {log:q} && printf %s {params.key:q} > {params.file:q} || {{ tail -n 20 {log:q} >&2; exit 1; }}"
