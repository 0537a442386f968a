# Made from records as points finish: the metrics of lm-eval, and runs in MLflow.


rule language:
    """Computes the metrics of lm-eval from the scores of the points."""
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
        code=lambda wildcards: language_fingerprint(PLAN.tasks(JOBS[wildcards.job].dataset)),
    shell:
        "{BLAST:q} language --grid-dir {FOLDER.root:q} {params.ids:q} 2> {log:q} || {{ tail -n 20 {log:q} >&2; exit 1; }}"


def records_of(wildcards):
    job = JOBS[wildcards.job]
    return stamps(None, [job]) + (stamps("language", [job]) if job in language_jobs() else [])


rule mlflow:
    """Imports the points of a job into MLflow. If the server is unreachable, the next run tries again."""
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
        "{BLAST:q} mlflow --grid-dir {FOLDER.root:q} --out {output:q} {params.ids:q}"
