# Suites of scripts/mount-suites on a mount, through FUSE, of Linux's server. Sourced by `run`.

# A guest with room for what the suites write; its files are in memory.
roomy='server --memory 4096 --append interop.room=3g'

# Runs them: [NAME=VALUE...] OPTION... SUITE... The mount's log is added to ours.log, where connections and losses are counted.
# nfsd is found by its ports.
suites_on_nfsd() {
    local settings=() status=0 log=warn,rpcrdma::client::rdma=debug,rpcrdma::client::link=info
    while [[ ${1:-} == [A-Z]*=* ]]; do settings+=("$1"); shift; done
    ((EUID == 0)) || skip "a mount that acts as every user is for root"
    # A guest that ends leaves programs that wait for a hard mount.
    timeout --foreground -k 120 1500 env LOGS="$scratch/logs" RPCRDMA_LOG="$log" "${settings[@]}" \
        "$root/scripts/mount-suites" --rpcrdma "$rpcrdma" --url "$(url)" --client --mount-port="$(mount_port)" \
        --client --crc=off "$@" 2>&1 | tee "$scratch/suites" || status=$?
    cat "$scratch/logs/mount.log" >>"$scratch/ours.log" || true
    ((status != SKIPPED)) || skip "$(sed -n 's/^SKIP: //p' "$scratch/suites")"
    ((status == 0)) || { echo "FAILED: $(grep -a FAILED "$scratch/suites" | tail -1)"; return 1; }
    # A suite whose program is not there says so, and is no failure.
    ! grep '^SKIP: ' "$scratch/suites" >"$scratch/skipped" || skip "$(sed -n 's/^SKIP: //p' "$scratch/skipped" | head -1)"
    # Nothing of it is left.
    inside 'test -z "$(ls -A /srv | grep -v "^lost+found\$")"'
}

scenario nfsd-mount-posix server 'our mount of nfsd: cp -a, tar, find, sed -i, flock, 5 GiB of hole, 200 appends; nfsd shows the same without a mount' quick
nfsd_mount_posix() {
    suites_on_nfsd --quick posix
    undisturbed
}

scenario nfsd-mount-pjd "$roomy" 'our mount of nfsd: pjdfstest, all tests'
nfsd_mount_pjd() {
    suites_on_nfsd pjd
    undisturbed
}

scenario nfsd-mount-fsx "$roomy" 'our mount of nfsd: the file system exerciser, 1,000 operations with each of 2 seeds'
nfsd_mount_fsx() {
    suites_on_nfsd FSX_OPS=1000 FSX_SEEDS='1 2' fsx
    undisturbed
}

scenario nfsd-mount-fio "$roomy" 'our mount of nfsd: fio, 4 jobs that verify what they have written, at random and in sequence'
nfsd_mount_fio() {
    suites_on_nfsd --quick fio
    fact bytes $((8 * 32 * 1048576))
    undisturbed
}

scenario nfsd-mount-stress "$roomy" 'our mount of nfsd: dbench, 4 clients for 10 s; 41 stressors of stress-ng'
nfsd_mount_stress() {
    # Some stop after a round only, which is thousands of files.
    suites_on_nfsd STRESS_PATIENCE=600 --quick dbench stress
    undisturbed
}

scenario nfsd-mount-git "$roomy" 'our mount of nfsd: git with 500 files: add, commit, mv, gc, clone, fsck'
nfsd_mount_git() {
    suites_on_nfsd --quick git
    undisturbed
}

scenario nfsd-mount-gittest "$roomy" "our mount of nfsd: 16 scripts of git's own test suite, t0002 to t0019 but three, step by step as on the local file system"
nfsd_mount_gittest() {
    suites_on_nfsd GIT_TESTS='t000[2-7]*.sh t0009*.sh t001[013-9]*.sh' gittest
    undisturbed
}

# A Call that nfsd says nothing to, for it executes it a first time, is sent once more after ten seconds.
impatient=(--client --timeo=100)

# How often the mount was cut, $1 times not by us, and that nothing else ended a connection.
count_mount_cuts() {
    fact cuts $(($1 + $(own_cuts)))
    fact connections "$(made)"
    fact again "$(sent_again)"
    expect "cuts, so that this says something" "$1 + $(own_cuts) >= 5"
    expect "connections lost, no more than were cut or had no Reply" "$(losses) <= $1 + $(own_cuts) + $(unanswered)"
    expect "connections, one for each loss, and the first" "$(made) <= $(losses) + 1"
    expect "the longest outage, in ms" "$(longest_outage) < ${STALL}000"
}

scenario nfsd-mount-cuts "$roomy" 'our mount of nfsd: POSIX programs, git and a part of pjdfstest, and our client cuts'
nfsd_mount_cuts() {
    suites_on_nfsd --quick --cuts 500 "${impatient[@]}" posix git pjd
    count_mount_cuts 0
}

scenario nfsd-mount-cuts-sockets "$roomy" "our mount of nfsd: POSIX programs, git and a part of pjdfstest; our client cuts, and the server's TCP connections are killed (ss -K)"
nfsd_mount_cuts_sockets() {
    killer sport 20049 0.7
    suites_on_nfsd --quick --cuts 2000 "${impatient[@]}" posix git pjd
    count_mount_cuts "$(killer_off)"
}

scenario nfsd-mount-power none 'our mount of nfsd on a disk: the power goes five times under 3 processes that synchronise; nothing acknowledged is lost'
nfsd_mount_power() {
    local peer=power options=(--nfsd --disk "$scratch/disk")
    truncate -s 2G "$scratch/disk"
    boot_own "${options[@]}"
    cat >"$scratch/restart" <<END
#!/usr/bin/env bash
"$guest" stop power && exec "$guest" boot power ${options[@]@Q}
END
    chmod +x "$scratch/restart"
    suites_on_nfsd CRASHES=5 --restart "$scratch/restart" crash
    fact cuts 5
    fact connections "$(made)"
    fact again "$(sent_again)"
    expect "connections lost" "$(losses) <= 5 + $(unanswered)"
    "$guest" stop power
}
