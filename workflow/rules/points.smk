# Points: a job trains, prunes and evaluates one or several points, and writes results/<grid>/records/<point>.json.
from blast.experiment.todo.views import suite_of

# The job that trains each point that runs now.
TRAINED_BY = {name: job for job in TODO.jobs for name in job.ids}


def job_of(wildcards, jobs=JOBS):
    """The job of this name."""
    if wildcards.job not in jobs:
        raise refusal(f"{wildcards.job}: there is no job of this name, or it has nothing to do.")
    return jobs[wildcards.job]


def requests_of(dataset):
    """The stamp of lm-eval's requests for a dataset, if they are to be built."""
    return [stamp("requests", dataset)] if dataset in TODO.requests else []


def inputs_of(wildcards):
    """Data, requests, and the jobs that train the dense models this job starts from; those that are to be made."""
    job = job_of(wildcards)
    parents = dict.fromkeys(TRAINED_BY[name] for name in job.after if name in TRAINED_BY)
    return planned() + downloaded() + prepared([job.dataset]) + requests_of(job.dataset) + stamps(parents)


def ids_of(wildcards):
    return list(job_of(wildcards).ids)


def processes_of(wildcards):
    """The largest number of training processes of a point of the job; each takes a slot."""
    return max(PLAN.points[name].processes for name in ids_of(wildcards))


def threads_of(wildcards):
    """Processors that a job asks a cluster for; on this machine, slots count them."""
    return CONFIG.threads * processes_of(wildcards) if on_cluster() else 1


def memory_of(wildcards):
    """Memory in MB that a job asks a cluster for."""
    return MEMORY * processes_of(wildcards)


def gpus_of(wildcards):
    """One GPU per process. A single GPU is shared by jobs of one process, unless `--resources gpus=1` was given."""
    processes = processes_of(wildcards)
    if on_cluster():
        return processes if GPUS_GIVEN and GPUS else 0
    return processes if GPUS > 1 or (GPUS and (processes > 1 or GPUS_GIVEN)) else 0


def gpus_of_benchmark(wildcards):
    """On a cluster, as for a training; on this machine, it holds all of them."""
    return gpus_of(wildcards) if on_cluster() else 0


def asked_gpus(count):
    """The number of GPUs under the name that executors of clusters read; without any, the name has to be absent."""
    return lambda wildcards: count(wildcards) or None if on_cluster() else None


def own_gpus_of(wildcards, resources):
    """The option of `blast job` by which a point holds its GPU alone; empty where no GPU was given."""
    return ["--own-gpus"] if resources.get("gpus", 0) else []


# A job runs its points one after the other; Snakemake runs jobs side by side. With `exec` there is no shell in between,
# which would end at a signal before the job has saved what it trains.
JOB = "exec {BLAST:q} job {params.ids:q} --plan {FOLDER.plan:q} --out {FOLDER.root:q} --log {log:q} --jobs 1 --attempt {resources.attempt:q} {params.own_gpus:q}"


rule point:
    """Trains, prunes and evaluates the points of a job; a failed point gets a record too."""
    input:
        inputs_of,
    output:
        touch(stamp("train", "{job}")),
    log:
        FOLDER.log("{job}"),
    priority: 10
    threads: threads_of
    resources:
        slots=processes_of,
        gpus=gpus_of,
        gpu=asked_gpus(gpus_of),
        mem_mb=memory_of,
        attempt=lambda wildcards, attempt: attempt,
    params:
        ids=ids_of,
        own_gpus=own_gpus_of,
    shell:
        JOB


rule benchmark:
    """Times kernels against dense and against other libraries, alone on the machine."""
    input:
        planned(),
        lambda wildcards: downloaded(),
    output:
        touch(stamp("benchmark", "{job}")),
    log:
        FOLDER.log("{job}"),
    threads: threads_of
    resources:
        slots=SLOTS,
        gpus=gpus_of_benchmark,
        gpu=asked_gpus(gpus_of_benchmark),
        mem_mb=memory_of,
        # Timings of a node that others use say little.
        slurm_extra="--exclusive",
        attempt=lambda wildcards, attempt: attempt,
    params:
        ids=ids_of,
        own_gpus=own_gpus_of,
    shell:
        JOB


def stamps(jobs):
    return [stamp(job.stage, job.name) for job in jobs]


def all_stamps():
    """All points that run, and lm-eval's metrics that are left."""
    return stamps(TODO.jobs) + stamps(TODO.language)
