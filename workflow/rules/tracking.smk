# Made from records as points finish: the metrics of lm-eval, and runs in MLflow.
LANGUAGE = {job.name: job for job in TODO.language}
MLFLOW = {job.name: job for job in TODO.mlflow}


def inputs_of_language(wildcards):
    """The job that scores these points, or the requests, if the points ran before."""
    job = job_of(wildcards, LANGUAGE)
    if job.name in JOBS:
        return stamps([JOBS[job.name]])
    return prepared([job.dataset]) + requests_of(job.dataset)


rule language:
    """Computes the metrics of lm-eval from the scores of the points."""
    input:
        inputs_of_language,
    output:
        touch(stamp("language", "{job}")),
    log:
        FOLDER.log("language.{job}"),
    priority: 20
    resources:
        slots=1,
        mem_mb=MEMORY,
    params:
        ids=lambda wildcards: list(job_of(wildcards, LANGUAGE).ids),
    shell:
        "{BLAST:q} language --grid-dir {FOLDER.root:q} {params.ids:q} 2> {log:q} || {{ tail -n 20 {log:q} >&2; exit 1; }}"


# The jobs of metrics by point: points that ran before are imported in other batches than their metrics are made.
MEASURED_BY = {name: job for job in TODO.language for name in job.ids}


def records_of(wildcards):
    job = job_of(wildcards, MLFLOW)
    before = [JOBS[job.name]] if job.name in JOBS else []
    return stamps(before + list(dict.fromkeys(MEASURED_BY[name] for name in job.ids if name in MEASURED_BY)))


rule mlflow:
    """Imports the points of a job into MLflow. If the server is unreachable, the next run tries again."""
    input:
        records_of,
    output:
        stamp("mlflow", "{job}"),
    priority: 20
    resources:
        slots=1,
    params:
        ids=lambda wildcards: list(job_of(wildcards, MLFLOW).ids),
    shell:
        "{BLAST:q} mlflow --grid-dir {FOLDER.root:q} --out {output:q} {params.ids:q}"
