"""The smoke scale on a real Slurm of one node, on the loopback address: `make cluster-test`, as root on Debian.

Installs Slurm from the distribution's packages where it is missing, starts its daemons with a configuration of their
own, builds the smoke scale in a copy of the project through profiles/slurm, trains one of its models again with two
processes through profiles/slurm/train.sbatch, prints the table of Slurm's jobs and the time, and stops the daemons. A
machine on which a Slurm is configured already is left alone. Debian's Slurm allows one node per machine, so the script
for several nodes runs on one.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.helpers.project import copy_project

SNAKEMAKE = Path(sys.executable).parent / "snakemake"
PACKAGES = ["slurmctld", "slurmd", "slurm-client", "munge"]
NODE = "loopback"
CORES = os.cpu_count() or 1
MOST_DIFFERENCE = 1e-4  # nats: two processes add the same numbers in another order
JOB_FIELDS = "JobID:8,State:12,NumCPUs:6,MinMemory:11,TimeUsed:8,StartTime:21,EndTime:21,Comment:80"
CONFIGURED = Path("/etc/slurm/slurm.conf")  # jobs look nowhere else: the plugin takes SLURM_CONF from their environment
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
NodeName={node} NodeAddr=127.0.0.1 NodeHostname={host} CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes={node} Default=YES MaxTime=INFINITE State=UP
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
MinJobAge=86400
"""


def install() -> None:
    """Install Slurm unless its daemons are there."""
    if all(shutil.which(program) for program in ("slurmctld", "slurmd", "sbatch", "munged")):
        return
    subprocess.run(["apt-get", "update"], check=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
    subprocess.run(command, check=True, env=environment)


def configure(folder: Path) -> Path:
    """Write slurm.conf and a key for munge into a folder."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 1
    path = folder / "slurm.conf"
    host = os.uname().nodename
    path.write_text(CONFIGURATION.format(node=NODE, host=host, cores=CORES, memory=memory, folder=folder))
    return path


def start(command: list[str], folder: Path, stack: ExitStack) -> None:
    """Start a daemon in the foreground of a process that ends with the stack; what it prints is kept in a file."""
    with open(folder / f"{command[0]}.out", "wb") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)

    def stop() -> None:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()

    stack.callback(stop)


def start_slurm(folder: Path, stack: ExitStack) -> None:
    """Start munged, slurmctld and slurmd and wait until the node takes jobs."""
    CONFIGURED.parent.mkdir(exist_ok=True)
    CONFIGURED.symlink_to(configure(folder))
    stack.callback(CONFIGURED.unlink)
    munge = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("key-file", "socket", "pid-file", "log-file")]
    start(["munged", "--foreground", "--force", f"--seed-file={folder}/munge.seed", *munge], folder, stack)
    while not (folder / "munge.socket").exists():
        time.sleep(0.1)
    start(["slurmctld", "-D"], folder, stack)
    start(["slurmd", "-D", "-N", NODE], folder, stack)
    stack.callback(subprocess.run, ["scancel", "--partition", "main"])  # what still runs when all is stopped
    deadline = time.monotonic() + 60
    while subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout.strip() != "idle":
        if time.monotonic() > deadline:
            raise SystemExit(f"error: the node does not become idle: see the logs in {folder}")
        time.sleep(0.5)


def build(project: Path) -> int:
    """Build the smoke scale through Slurm. What is overridden fits the profile to one small node without accounting."""
    overrides = ["--set-threads", f"data={CORES}", f"cost={CORES}", "--set-resources", "train:mem_mb=2000"]
    overrides += ["--seconds-between-status-checks", "2", "--slurm-init-seconds-before-status-checks", "2"]
    overrides += ["--slurm-status-command", "squeue", "--retries", "0"]
    command = [str(SNAKEMAKE), "--workflow-profile", "profiles/slurm", *overrides, "--config", "scale=smoke"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, cwd=project, env=environment).returncode


def train_by_script(project: Path) -> float:
    """Train one model of the build again by the script for several nodes; return the difference of its validation loss.

    The script takes a process for each GPU that Slurm gives it; here it is told that there are two.
    """
    folder, run = project / "results/smoke", "runs/small/ddl-cc/seed0"
    places = ["--data", str(folder / "data"), "--out", str(folder / "by-script")]
    settings = ["--scale", "smoke", "--size", "small", "--variant", "ddl-cc", "--seed", "0"]
    path = os.pathsep.join([str(SNAKEMAKE.parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(project), "PATH": path, "SLURM_GPUS_ON_NODE": "2"}
    job = ["sbatch", "--wait", "--nodes", "1", "profiles/slurm/train.sbatch", *settings, *places]
    if subprocess.run(job, cwd=project, env=environment).returncode:
        raise SystemExit(f"error: profiles/slurm/train.sbatch failed: see the output of its job in {project}")
    first, second = (json.loads((folder / place / "summary.json").read_text()) for place in (run, "by-script"))
    return float(abs(first["val_loss"] - second["val_loss"]))


def main() -> None:
    """Run it all; the exit code says whether everything was built and every job completed."""
    if os.geteuid():
        raise SystemExit("error: installing and starting Slurm needs root")
    if CONFIGURED.exists():
        raise SystemExit(f"error: {CONFIGURED} exists: this machine has a Slurm of its own")
    install()
    folder = Path(tempfile.mkdtemp(prefix="ddl-cluster-"))
    with ExitStack() as stack:
        start_slurm(folder, stack)
        project = copy_project(folder / "project")
        started = time.monotonic()
        status = build(project)
        seconds = time.monotonic() - started
        if not status:
            difference = train_by_script(project)
            print(f"with two processes, by the script for several nodes, the loss differs by {difference:.1e} nats")
            if difference > MOST_DIFFERENCE:
                raise SystemExit(f"error: expected at most {MOST_DIFFERENCE:g}")
        command = ["squeue", "--states=all", "--sort=i", f"--Format={JOB_FIELDS}"]
        table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        print(table)
        jobs, completed = len(table.splitlines()) - 1, table.count("COMPLETED")
        print(f"{completed} of {jobs} jobs completed, wall time {seconds:.0f} s on {CORES} cores")
    if status or completed < jobs or not (project / "results/smoke/paper.pdf").is_file():
        raise SystemExit(f"error: not everything was built: see {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
