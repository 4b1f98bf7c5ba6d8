#!/usr/bin/env bash
# Starts a real one-node Slurm on loopback for the tests marked `slurm`, and prints the path of its
# configuration: SLURM_CONF=$(tests/slurm/start_slurm.sh) sinfo. Needs root, and Debian's or Ubuntu's
# apt-get where Slurm is missing. Everything it writes lies in one folder; a Slurm that the machine
# may already have is left alone. Does nothing if it runs already. Stop it: start_slurm.sh stop
set -euo pipefail

folder=${REPRO_TEST_SLURM:-/tmp/repro-test-slurm}
export SLURM_CONF=$folder/slurm.conf

fail() { echo "start_slurm.sh: $*" >&2; exit 1; }

stop() {
    for name in slurmd slurmctld munged; do
        if [ -f "$folder/$name.pid" ]; then kill "$(cat "$folder/$name.pid")" 2>/dev/null || true; fi
    done
}

install_slurm() {
    if command -v slurmctld slurmd sbatch munged >/dev/null; then return; fi
    command -v apt-get >/dev/null || fail "Slurm is not installed, and there is no apt-get here."
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get -o DPkg::Lock::Timeout=300 install --yes \
        --no-install-recommends slurm-wlm munge; } >"$folder/install.log" 2>&1 \
        || fail "apt-get cannot install Slurm; see $folder/install.log"
}

write_config() {
    mkdir -p "$folder/state" "$folder/spool"
    [ -f "$folder/munge.key" ] || (umask 077; head -c 1024 /dev/urandom >"$folder/munge.key")
    echo 'CgroupAutomount=no' >"$folder/cgroup.conf"
    cat >"$SLURM_CONF" <<CONF
ClusterName=reprotest
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# One-second ticks, so that tests need not wait for a scheduler made for large clusters.
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
KillWait=10
MinJobAge=60
ReturnToService=2
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 RealMemory=4096
PartitionName=debug Nodes=localhost Default=YES MaxTime=INFINITE State=UP
CONF
}

is_up() { [ "$(timeout 10 sinfo --noheader --format=%t 2>/dev/null)" != "" ] \
    && timeout 10 sinfo --noheader --format=%t | grep -qE 'idle|mix|alloc|comp'; }

start() {
    stop
    rm -f "$folder/munge.socket"*
    munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
        --seed-file="$folder/munged.seed" || fail "munged does not start; see $folder/munged.log"
    slurmctld -c || fail "slurmctld does not start; see $folder/slurmctld.log"
    slurmd -N localhost || fail "slurmd does not start; see $folder/slurmd.log"
    for _ in $(seq 60); do
        if is_up; then return; fi
        sleep 0.5
    done
    fail "the node does not come up; see $folder/slurmctld.log and $folder/slurmd.log"
}

[ "$(id -u)" = 0 ] || fail "starting Slurm takes root"
mkdir -p "$folder"
exec 9>"$folder/lock"  # two test processes may ask at once
flock 9
if [ "${1:-start}" = stop ]; then stop; exit; fi
install_slurm
if ! is_up; then write_config; start 9>&-; fi
echo "$SLURM_CONF"
