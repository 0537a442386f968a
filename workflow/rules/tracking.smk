# What is made of records as they come: lm-eval's metrics, and runs in MLflow.


rule language:
    """lm-eval's own code makes the metrics, from the scores that the points left."""
    input:
        FOLDER.stamp("train", "{job}"),
    output:
        touch(FOLDER.stamp("language", "{job}")),
    log:
        FOLDER.log("language.{job}"),
    priority: 20
    resources:
        slots=1,
    params:
        ids=lambda wildcards: list(JOBS[wildcards.job].ids),
        code=provenance.fingerprint("language"),
    shell:
        "{PYTHON} -m blast language --grid-dir {FOLDER.root} {params.ids} 2> {log} || {{ tail -n 20 {log} >&2; exit 1; }}"


def records_of(wildcards):
    job = JOBS[wildcards.job]
    return stamps(None, [job]) + (stamps("language", [job]) if job in language_jobs() else [])


rule mlflow:
    """Shows the points of a job in MLflow; a server out of reach costs nothing and is tried again next time."""
    input:
        records_of,
    output:
        FOLDER.stamp("mlflow", "{job}"),
    priority: 20
    resources:
        slots=1,
    params:
        ids=lambda wildcards: list(JOBS[wildcards.job].ids),
        store=os.environ.get("MLFLOW_TRACKING_URI", "results/mlflow"),
    shell:
        "{PYTHON} -m blast mlflow --grid-dir {FOLDER.root} --out {output} {params.ids}"
