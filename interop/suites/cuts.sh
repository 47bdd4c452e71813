# Connections are cut, programs killed, guests switched off, while there is work. Sourced by `run`.

# A guest that a scenario boots by itself, as `power`.
boot_own() {
    "$guest" boot power "$@"
    inside 'uname -r' >"$scratch/kernel"
}

# --- Our client on nfsd ---

# Copies a tree there and back while others cut, and compares. More cuts than these would be a storm of reconnects. nfsd says
# nothing to a Call that comes again while it executes the first one, so a Call is sent once more after ten seconds.
copy_through_cuts() { # OPTIONS of our client
    local how=(--mount-port "$(mount_port)" --timeout 60 --timeo 100 "$@") tree=$scratch/tree
    make_tree "$tree" 600
    head -c 20000001 /dev/urandom >"$tree/large"
    ours cp -r "${how[@]}" "$tree" "$(url /)"
    inside 'echo 3 >/proc/sys/vm/drop_caches'
    equal "the files and what was written" "$(host_digest "$tree")" "$(guest_digest /srv/tree)"
    ours cp -r "${how[@]}" "$(url /tree)" "$scratch/back"
    diff -r --no-dereference "$tree" "$scratch/back"
    equal "modes and times" "$(attributes "$tree")" "$(attributes "$scratch/back")"
    fact bytes $((2 * $(bytes_in "$tree")))
    inside 'rm -rf /srv/tree'
}

# Seconds that an operation of the guest's, and an outage of our client's, may take at most: a back-off of five seconds that
# was hit twice explains no more.
STALL=15

# The table's numbers of a copy that was cut so often by others, and took so many commands.
count_copy() { # CUTS [COMMANDS]
    fact cuts $(($1 + $(own_cuts)))
    fact connections "$(made)"
    fact again "$(sent_again)"
    expect "cuts, so that this says something" "$1 + $(own_cuts) >= 5"
    expect "connections lost, no more than were cut or had no Reply" "$(losses) <= $1 + $(own_cuts) + $(unanswered)"
    expect "connections that had no Reply, few" "$(unanswered) <= 2"
    expect "connections, one for each command and each loss" "$(made) <= $(losses) + ${2:-2}"
    expect "the longest outage, in ms" "$(longest_outage) < ${STALL}000"
}

scenario nfsd-cuts-ours server 'our client on nfsd copies a tree there and back and cuts its own connections' quick
nfsd_cuts_ours() {
    copy_through_cuts --inject disconnect=1/200,seed=5
    count_copy 0
}

scenario nfsd-cuts-linux server "the same, and nfsd cuts (fail_sunrpc)"
nfsd_cuts_linux() {
    need_faults
    faults server 150
    copy_through_cuts
    count_copy "$(faults_off)"
}

scenario nfsd-cuts-sockets server "the same, and the server's TCP connections are killed (ss -K)"
nfsd_cuts_sockets() {
    killer sport 20049 0.1
    copy_through_cuts --credits 4
    count_copy "$(killer_off)"
}

scenario nfsd-cuts-all server "the same, and all of them cut" quick
nfsd_cuts_all() {
    need_faults
    faults server 200
    killer sport 20049 0.7
    copy_through_cuts --inject disconnect=1/300,seed=6
    count_copy $(($(faults_off) + $(killer_off)))
}

scenario nfsd-power none 'our client copies to nfsd on a disk; the power goes twice, and the copy goes on' quick
nfsd_power() {
    local peer=power tree=$scratch/tree copy cut options=(--nfsd --disk "$scratch/disk")
    make_tree "$tree" 1500
    head -c 60000001 /dev/urandom >"$tree/large"
    truncate -s 256M "$scratch/disk"
    boot_own "${options[@]}"
    ours cp -r --mount-port "$(mount_port)" "$tree" "$(url /)" &
    copy=$!
    for cut in 1 2; do
        # Somewhere in the middle.
        some() { [[ $(inside 'find /srv/tree 2>/dev/null | wc -l') -gt $((cut * 150)) ]]; }
        wait_for 60 some || true
        kill -0 "$copy" || { echo "FAILED: the copy was over before the power went"; return 1; }
        "$guest" stop power
        sleep 2
        "$guest" boot power "${options[@]}"
    done
    wait "$copy"
    equal "the files and what was written" "$(host_digest "$tree")" "$(guest_digest /srv/tree)"
    # What COMMIT promised is on the disk.
    "$guest" stop power
    "$guest" boot power "${options[@]}"
    equal "the files and what is on the disk" "$(host_digest "$tree")" "$(guest_digest /srv/tree)"
    fact bytes $((2 * $(bytes_in "$tree")))
    fact cuts 2
    fact connections "$(made)"
    fact again "$(sent_again)"
    expect "connections lost" "$(losses) <= 2"
    "$guest" stop power
}

# --- Linux's client on our server ---

churn_through_cuts() { # PROCESSES ROUNDS
    local slowest
    inside -t 300 "/interop/churn /mnt $1 $2" | tee "$scratch/churn"
    slowest=$(sed -n 's/^slowest //p' "$scratch/churn")
    expect "the slowest operation, in hundredths of seconds" "$slowest < ${STALL}00"
    fact bytes $(($1 * $2 * 150000))
}

# Unmounts, stops the server, and counts, given the cuts of others.
count_mount() {
    local connections again cuts
    read -r connections again < <(linux_counts)
    unmount
    "$stop_server"
    cuts=$(($1 + $(served_cuts)))
    fact cuts "$cuts"
    fact connections "$connections"
    fact again "$again"
    expect "cuts, so that this says something" "$cuts >= 5"
    # Now and then Linux drops a connection that it has just made after a loss: three times in 500 cuts. A storm of
    # reconnects would be many times more.
    expect "connections, hardly more than were cut, and the first" "$connections <= $cuts + $cuts / 20 + 1"
    expect "connections that our server saw" "$(served_connections) <= $cuts + $cuts / 20 + 1"
}

scenario mount-cuts-linux client 'Linux mounts our server and cuts its own connections (fail_sunrpc): 4 processes make, write, rename, link, remove; all exactly once'
mount_cuts_linux() {
    need_faults
    serve
    mount_ours
    faults client 100
    churn_through_cuts 4 25
    count_mount "$(faults_off)"
}

scenario mount-cuts-ours client 'the same, and our server cuts' quick
mount_cuts_ours() {
    serve --inject disconnect=1/150,seed=8
    mount_ours
    churn_through_cuts 4 25
    count_mount 0
}

scenario mount-cuts-sockets client "the same, and the client's TCP connections are killed (ss -K)"
mount_cuts_sockets() {
    serve
    mount_ours
    killer dport "$rdma_port" 0.7
    churn_through_cuts 4 40
    count_mount "$(killer_off)"
}

scenario mount-cuts-all client 'the same, and all of them cut' quick
mount_cuts_all() {
    need_faults
    serve --inject disconnect=1/300,seed=9
    mount_ours
    faults client 200
    killer dport "$rdma_port" 1
    churn_through_cuts 4 40
    count_mount $(($(faults_off) + $(killer_off)))
}

scenario mount-kill client 'Linux mounts our server, which is killed and started again five times while 4 processes write'
mount_kill() {
    local round job
    serve
    mount_ours
    inside -t 400 'for r in 1 2 3 4 5 6; do mkdir -p /mnt/r$r; /interop/writers /mnt/r$r 4 2 >/tmp/sums.$r; done; cat /tmp/sums.6' >"$scratch/sums" &
    job=$!
    for round in 1 2 3 4 5; do
        # In the midst of the writers of a round.
        begun() { compgen -G "$scratch/export/r$round/w*" >/dev/null; }
        wait_for 100 begun
        kill -KILL "$server"
        wait "$server" || true
        serve
    done
    wait "$job"
    for round in 1 2 3 4 5 6; do
        (cd "$scratch/export/r$round" && md5sum w*) | diff <(inside "cat /tmp/sums.$round") -
    done
    local connections again
    read -r connections again < <(linux_counts)
    unmount
    serve_stop
    fact bytes $((6 * 4 * 2097152))
    fact cuts 5
    fact connections "$connections"
    fact again "$again"
    # Now and then Linux drops a connection that it has just made after a loss, and makes another.
    expect "connections, at most two for each kill, and the first" "$connections <= 11"
}

scenario mount-power none 'Linux writes to our server and is switched off; it comes back and finds what it had synced' quick
mount_power() {
    local peer=power sum
    serve
    boot_own
    mount_ours
    inside -t 100 'dd if=/dev/urandom of=/mnt/kept bs=1M count=8 conv=fsync 2>/dev/null; md5sum </mnt/kept' >"$scratch/sum"
    inside 'dd if=/dev/zero of=/mnt/lost bs=1M count=400 >/dev/null 2>&1 &'
    begun() { [[ -s $scratch/export/lost ]]; }
    wait_for 60 begun
    "$guest" stop power
    ended() { [[ $(served_connections) == 1 ]]; }
    wait_for 60 ended || { echo "FAILED: the server does not notice that its client has gone"; return 1; }
    "$guest" boot power
    mount_ours
    equal "what was synced" "$(inside 'md5sum </mnt/kept')" "$(cat "$scratch/sum")"
    equal "what is here" "$(md5sum <"$scratch/export/kept")" "$(cat "$scratch/sum")"
    inside 'rm /mnt/lost /mnt/kept'
    unmount
    serve_stop
    "$guest" stop power
    fact bytes 8388608
    fact cuts 1
    fact connections "$(served_connections)"
}

scenario git-cuts 'client --memory 1536' 'git on a mount of our server: clone, fsck, gc, 8 processes check out and commit; both sides cut every few hundred requests'
git_cuts() {
    local round rounds=${RPCRDMA_INTEROP_GIT_ROUNDS:-1} kernel_cuts=0
    has git && git -C "$root" rev-parse --git-dir >/dev/null 2>&1 || skip "no git and no repository on the host to clone from"
    mkdir -p "$scratch/export"
    git clone -q --bare --no-local "$root" "$scratch/export/origin.git"
    serve --inject disconnect=1/1000,seed=11
    mount_ours
    # Debian's kernel cannot: then only our side cuts.
    if inside 'test -d /sys/kernel/debug/fail_sunrpc'; then faults client 700; kernel_cuts=1; fi
    for ((round = 1; round <= rounds; round++)); do inside -t 560 "/interop/git-work /mnt $round 8"; done
    ((kernel_cuts == 0)) || kernel_cuts=$(faults_off)
    # Twice in a round fsck looks at every object.
    fact bytes $((rounds * 2 * $(bytes_in "$scratch/export/origin.git")))
    count_mount "$kernel_cuts"
}
