# Points: a job trains, prunes and evaluates one or several points, and writes results/<grid>/records/<point>.json.


def inputs_of(wildcards):
    """Data, requests, and the jobs that train the dense models this job starts from."""
    job = JOBS[wildcards.job]
    files = [FOLDER.data(job.dataset)] if job.dataset else []
    if job.dataset and PLAN.tasks(job.dataset):
        files.append(FOLDER.stamp("requests", job.dataset))
    parents = [other for other in PLAN.jobs if set(other.ids) & set(job.after)]
    return files + [FOLDER.stamp(parent.stage, parent.name) for parent in parents]


def ids_of(wildcards):
    return list(JOBS[wildcards.job].ids)


def points_of(wildcards):
    return [PLAN.points[name].to_dict() for name in ids_of(wildcards)]


def code_of(wildcards):
    """Digest of the code that decides the points of a job: the job runs again when it changes."""
    return fingerprint_of_points(PLAN.points[name] for name in ids_of(wildcards))


def processes_of(wildcards):
    """The largest number of training processes of a point of the job; each takes a slot."""
    return max(PLAN.points[name].processes for name in ids_of(wildcards))


def gpus_of(wildcards):
    """One GPU per process. A single GPU is shared by jobs of one process, unless `--resources gpus=1` was given."""
    processes = processes_of(wildcards)
    return processes if GPUS > 1 or (GPUS and (processes > 1 or GPUS_GIVEN)) else 0


def own_gpus_of(wildcards, resources):
    """The option of `blast job` by which a point holds its GPU alone; empty where no GPU was given."""
    return ["--own-gpus"] if resources.get("gpus", 0) else []


# The plan is `ancient`: where a grid grows, its file is written anew, and only the new points run.
# A job runs its points one after the other; Snakemake runs jobs side by side.
JOB = "{BLAST:q} job {params.ids:q} --plan {input.plan:q} --out {FOLDER.root:q} --log {log:q} --jobs 1 {params.own_gpus:q}"


rule point:
    """Trains, prunes and evaluates the points of a job; a failed point gets a record too."""
    input:
        inputs_of,
        plan=ancient(FOLDER.plan),
    output:
        touch(FOLDER.stamp("train", "{job}")),
    log:
        FOLDER.log("{job}"),
    priority: 10
    resources:
        slots=processes_of,
        gpus=gpus_of,
    params:
        ids=ids_of,
        own_gpus=own_gpus_of,
        # These two decide whether the job runs again.
        points=points_of,
        code=code_of,
    shell:
        JOB


rule benchmark:
    """Times kernels against dense and against other libraries, alone on the machine."""
    input:
        plan=ancient(FOLDER.plan),
    output:
        touch(FOLDER.stamp("benchmark", "{job}")),
    log:
        FOLDER.log("{job}"),
    resources:
        slots=SLOTS,
    params:
        ids=ids_of,
        own_gpus=own_gpus_of,
        # These two decide whether the job runs again.
        points=points_of,
        code=code_of,
    shell:
        JOB


def stamps(stage, jobs=None):
    return [FOLDER.stamp(stage or job.stage, job.name) for job in (PLAN.jobs if jobs is None else jobs)]


def language_jobs():
    return [job for job in PLAN.jobs if job.dataset and PLAN.tasks(job.dataset)]


def all_stamps():
    """All points, and lm-eval's metrics of them."""
    return stamps(None) + stamps("language", language_jobs())


def jobs_of_suite(suite):
    return [job for job in PLAN.jobs if (PLAN.points[job.ids[0]].benchmark or {}).get("suite") == suite]
