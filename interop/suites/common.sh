# What several suites use. Sourced by `run`; holds no scenario.

# --- Our server ---------------------------------------------------------------------------------------------------------

# Unless a scenario says otherwise nobody asks for CRC32c: siw misreads a checksum that two TCP segments share, and breaks off
# (docs/interop.md).
without_crc() { [[ " $* " == *" --crc "* ]] || echo "--crc off"; }

# Serves $scratch/export as /export, with these options. A second call takes the same ports and the same key.
serve() {
    local listen=127.0.0.1:${rdma_port:-0} tcp=127.0.0.1:${tcp_port:-0}
    mkdir -p "$scratch/export"
    chmod 777 "$scratch/export"
    rm -f "$scratch/ready"
    # shellcheck disable=SC2046 # two words
    "$rpcrdma" serve -v $(without_crc "$@") --listen "$listen" --tcp "$tcp" --no-rpcbind --no-root-squash --handle-key "$scratch/key" \
        --ready-file "$scratch/ready" --export "/export=$scratch/export" "$@" >>"$scratch/serve.log" 2>&1 &
    server=$!
    echo "$server" >>"$scratch/pids"
    wait_for 20 test -s "$scratch/ready" || { cat "$scratch/serve.log"; return 1; }
    rdma_port=$(sed -n 's/.*"rdma": *"127\.0\.0\.1:\([0-9]*\)".*/\1/p' "$scratch/ready")
    tcp_port=$(sed -n 's/.*"tcp": *"127\.0\.0\.1:\([0-9]*\)".*/\1/p' "$scratch/ready")
}

# Stops our server in good order. Its connections and the cuts of its own go to the table.
serve_stop() {
    kill -INT "$server"
    wait "$server" || { echo "FAILED: the server stopped with status $?"; tail -5 "$scratch/serve.log"; return 1; }
    ! grep -a 'panicked' "$scratch/serve.log" || { echo "FAILED: the server panicked"; return 1; }
}
# RDMA connections that our servers had in this scenario, those that were killed included.
served_connections() { grep -ac 'RDMA connection ended' "$scratch/serve.log" || true; }
served_cuts() { grep -ac 'RDMA connection ended: an injected fault' "$scratch/serve.log" || true; }
# The last value of one of the server's counters that it has told.
last_count() { { grep -aoE "[ ,]$1 [0-9,]*[0-9]" "$scratch/serve.log" || echo 0; } | tail -1 | grep -oE '[0-9,]+$' | tr -d ,; }
# The value of one of the server's counters.
counter() {
    kill -USR1 "$server"
    sleep 0.5
    last_count "$1"
}
# Whether all RDMA connections have ended, as the server has told last. What comes beyond the grant is counted at the end of each.
all_have_ended() { grep -a '^  rdma ' "$scratch/serve.log" | tail -1 | grep -q 'connections \([0-9,]*\), closed \1,'; }
within_the_grant() {
    all_ended() { counter closed >/dev/null && all_have_ended; }
    wait_for 10 all_ended || { echo "FAILED: connections of the server's that do not end"; return 1; }
    expect "Calls beyond the grant" "$(last_count 'beyond the grant') == 0"
}
# How a scenario's server is stopped; one that runs elsewhere is stopped in another way.
stop_server=serve_stop
# That a server of ours has executed what changes something once for each thing of a tree, though it was asked more often,
# while the tree was copied to it and removed.
executed_once() { # TREE
    local files dirs links
    files=$(find "$1" -type f | wc -l) dirs=$(find "$1" -type d | wc -l) links=$(find "$1" -type l | wc -l)
    expect "CREATE, once for each file" "$(last_count CREATE) == $files"
    expect "RENAME, once for each file, which is whole then" "$(last_count RENAME) == $files"
    expect "MKDIR, once for each directory" "$(last_count MKDIR) == $dirs"
    expect "SYMLINK, once for each link" "$(last_count SYMLINK) == $links"
    expect "REMOVE, once for each file and link" "$(last_count REMOVE) == $files + $links"
    expect "RMDIR, once for each directory" "$(last_count RMDIR) == $dirs"
    expect "Calls that came again and were answered without being executed" "$(last_count replayed) > 0"
}

# --- Linux's client -----------------------------------------------------------------------------------------------------

mount_options() { echo "rdma,port=$rdma_port,vers=3,nolock,mountproto=tcp,mountport=$tcp_port${1:+,$1}"; }
mount_ours() { inside -t 60 "mkdir -p /mnt; mount.nfs 10.0.2.2:/export /mnt -o $(mount_options "${1:-}")"; }
unmount() { inside -t 60 'cd /; umount /mnt'; }
forget_cache() { inside 'sync; echo 3 >/proc/sys/vm/drop_caches'; }

# "CONNECTIONS SENT-AGAIN" of the guest's mount so far.
linux_counts() {
    inside "awk '
        / mounted on / { ours = (\$5 == \"/mnt\") }
        ours && \$1 == \"xprt:\" { connections += \$5 }
        ours && ops && \$1 ~ /^[A-Z0-9]+:\$/ { again += \$3 - \$2 }
        \$1 == \"per-op\" { ops = ours }
        END { print connections + 0, again + 0 }' /proc/self/mountstats"
}

# --- Faults -------------------------------------------------------------------------------------------------------------

# Before anything is mounted, which a skipped scenario would leave behind.
need_faults() { inside 'test -d /sys/kernel/debug/fail_sunrpc' || skip "this kernel has no CONFIG_FAIL_SUNRPC"; }

# Lets the guest's SunRPC cut: faults client|server|both ONE-IN; `faults_off` ends it and prints how often it did.
faults() {
    local client=Y server=Y
    case $1 in client) client=N ;; server) server=N ;; both) client=N server=N ;; esac
    inside "cd /sys/kernel/debug/fail_sunrpc
        echo $client >ignore-client-disconnect; echo $server >ignore-server-disconnect; echo Y >ignore-cache-wait
        echo 0 >verbose; echo $2 >interval; echo 1000000 >times; echo 100 >probability"
}
faults_off() {
    inside 'cd /sys/kernel/debug/fail_sunrpc; echo 0 >probability; echo $((1000000 - $(cat times)))'
}

# Kills the guest's TCP connections of a port every so many seconds, until the file /tmp/stop is there; the number is in
# /tmp/killed. Only those that were there the time before: when siw loses a connection that it has not accepted yet, it
# closes its listening socket with it.
killer() { # sport|dport PORT SECONDS
    inside "rm -f /tmp/stop; echo 0 >/tmp/killed
        (n=0; before=
        while [ ! -e /tmp/stop ]; do
            sleep $3
            now=\$(ss -Htn state established '$1 = :$2' | awk '{ print \$3, \$4 }')
            echo \"\$now\" | while read -r a b; do
                [ -n \"\$a\" ] && echo \"\$before\" | grep -qxF \"\$a \$b\" && ss -KHtn \"sport = :\${a##*:} and dport = :\${b##*:}\"
            done >/tmp/kills 2>/dev/null
            n=\$((n + \$(wc -l </tmp/kills))); echo \$n >/tmp/killed
            before=\$now
        done; touch /tmp/ended) </dev/null >/dev/null 2>&1 &"
}
killer_off() { inside 'touch /tmp/stop; while [ ! -e /tmp/ended ]; do sleep 0.1; done; rm /tmp/ended; cat /tmp/killed'; }

# --- Our client ---------------------------------------------------------------------------------------------------------

# Runs our program against the guest's server, with its log kept, which names every connection.
ours() {
    # shellcheck disable=SC2046,SC2016 # two words; for the other shell
    timeout 400 bash -c 'echo $$ >>"$0"; exec "$@"' "$scratch/pids" "$rpcrdma" "$1" -vv $(without_crc "$@") "${@:2}" 2> >(tee -a "$scratch/ours.log" >&2)
}
url() { echo "nfs://127.0.0.1:$(forwarded 20049)/srv${1:-}"; }
mount_port() { forwarded 20048; }
made() { grep -ac 'rpcrdma::client::rdma: connected ' "$scratch/ours.log" 2>/dev/null || true; }
losses() { grep -ac 'connection lost: ' "$scratch/ours.log" 2>/dev/null || true; }
unanswered() { grep -ac 'connection lost: a Call had no Reply' "$scratch/ours.log" 2>/dev/null || true; }
own_cuts() { grep -ac 'connection lost: an injected fault' "$scratch/ours.log" 2>/dev/null || true; }
# What the transport of each of its connections was, in words: `agreed CRC32c`, for one.
agreed() {
    local all with
    all=$(made)
    with=$(grep -ac "rpcrdma::client::rdma: connected .*transport=.*$1" "$scratch/ours.log" || true)
    expect "connections with $1, all of them" "$with == $all && $all > 0"
}
# How long, in milliseconds, Calls waited at most until their server answered again.
longest_outage() {
    { grep -a 'the server answers again' "$scratch/ours.log" 2>/dev/null || true; } |
        sed -nE 's/.*down=([0-9.]+)(m?s).*/\1 \2/p' |
        awk '{ ms = $1 * ($2 == "s" ? 1000 : 1); if (ms > most) most = ms } END { print int(most) }'
}
sent_again() {
    { grep -a 'connection lost: ' "$scratch/ours.log" 2>/dev/null || true; } |
        sed -nE 's/.*(unanswered|pending)=([0-9]+).*/\2/p' | awk '{ n += $1 } END { print n + 0 }'
}

# --- Data ---------------------------------------------------------------------------------------------------------------

# Sizes around everything that has an edge: words, inline thresholds, pages, segments, transfers.
sizes=(0 1 2 3 4 5 700 1000 3000 3500 3900 4000 4093 4095 4096 4097 5001 8191 8192 12289 65535 65537 1048575 1048576 1048577 3000001)
# A tree with these, links, a deep path, and a directory that needs several READDIRPLUS.
make_tree() {
    local dir=$1 n
    mkdir -p "$dir/sizes" "$dir/many" "$dir/a/b/c/d/e" "$dir/modes"
    for n in "${sizes[@]}"; do head -c "$n" /dev/urandom >"$dir/sizes/$n"; done
    for ((n = 0; n < ${2:-300}; n++)); do echo "$n" >"$dir/many/an-entry-with-a-name-of-some-length-$n"; done
    echo deep >"$dir/a/b/c/d/e/file"
    ln -s ../sizes/4096 "$dir/a/link"
    # The longest target takes a Long Call, as its name does not fit inline.
    ln -s "$(printf 'x%.0s' {1..4000})" "$dir/a/long-link"
    echo "odd name" >"$dir/a/näme with spaces and 'quotes'"
    for n in 400 444 600 755; do echo "$n" >"$dir/modes/$n"; chmod "$n" "$dir/modes/$n"; done
    touch -d '2001-02-03 04:05:06.789' "$dir/a/b/c/d/e/file"
}
# A digest of all files of a tree in the guest, and on the host.
host_digest() { (cd "$1" && find . -type f | LC_ALL=C sort | tr '\n' '\0' | xargs -0 md5sum | md5sum | cut -d' ' -f1); }
guest_digest() { inside -t 300 "cd $1 && find . -type f | LC_ALL=C sort | tr '\n' '\0' | xargs -0 md5sum | md5sum | cut -d' ' -f1"; }
equal() { # WHAT A B
    [[ $2 == "$3" ]] && echo "ok: $1 are equal" || { echo "FAILED: $1 differ: $2, $3"; return 1; }
}
# A digest of modes and times of everything but symlinks, and the sizes of files. Busybox copies microseconds; with a second
# argument, whole seconds are looked at.
attributes() {
    (cd "$1" && find . -type f -printf '%P %m %s %T@\n' -o -type d -printf '%P %m %T@\n') |
        sed -E "${2:+s/\.[0-9]+\$//}" | LC_ALL=C sort | md5sum | cut -c1-32
}
