# Linux's client mounts our server. Sourced by `run`.

# Ends a scenario: unmounts, stops the server, and counts.
finish_mount() {
    local connections again
    read -r connections again < <(linux_counts)
    unmount
    "$stop_server"
    fact again "$again"
    fact connections "$connections"
    if [[ ${1:-} ]]; then fact cuts "$1"; else fact cuts 0; expect "connections" "$connections == 1"; fi
}

# Whether our server has agreed to that; told to say more, it names the transport.
served_with() {
    grep -a "connected .*transport=.*$1" "$scratch/serve.log" || { echo "FAILED: no connection with $1"; return 1; }
}

# Devices and owners are for root to change, there and here.
posix_workload() { inside -t 200 '/interop/posix /mnt/p'; }
need_root() { ((EUID == 0)) || skip "our server has to run as root to change owners"; }

scenario mount-posix client 'Linux mounts our server: create, rename, unlink while open, truncate, append, sparse files, links, modes, times, df' quick
mount_posix() {
    need_root
    serve
    mount_ours
    posix_workload
    finish_mount
}

scenario mount-entries client 'Linux mounts our server: a directory of 10,000 entries, listed with attributes'
mount_entries() {
    serve
    mkdir "$scratch/export/many"
    local listed
    (cd "$scratch/export/many" && seq -f 'entry-%05.0f' 1 10000 | xargs touch)
    mount_ours
    equal "the names" "$(cd "$scratch/export/many" && printf '%s\n' * | LC_ALL=C sort | md5sum)" \
        "$(inside -t 300 'cd /mnt/many; ls -1 | LC_ALL=C sort | md5sum')"
    listed=$(inside -t 300 'ls -ln /mnt/many | grep -c "entry-"')
    expect "entries with attributes" "$listed == 10000"
    inside -t 300 'cd /mnt/many && ls | head -1000 | xargs rm && test "$(ls | wc -l)" = 9000'
    expect "entries left" "$(ls "$scratch/export/many" | wc -l) == 9000"
    finish_mount
}

scenario mount-bulk client 'Linux mounts our server: 32 MiB each way in 1 MiB, and files of all sizes; digests equal' quick
mount_bulk() {
    serve
    head -c 33554433 /dev/urandom >"$scratch/export/down"
    make_tree "$scratch/export/tree" 50
    chmod -R a+rX "$scratch/export"
    mount_ours rsize=1048576,wsize=1048576
    equal "a large file read" "$(md5sum <"$scratch/export/down")" "$(inside -t 120 'md5sum </mnt/down')"
    inside -t 200 'dd if=/dev/urandom of=/tmp/up bs=1M count=32 2>/dev/null; cp /tmp/up /mnt/up; sync'
    equal "a large file written" "$(md5sum <"$scratch/export/up")" "$(inside 'md5sum </tmp/up; rm /tmp/up')"
    equal "a tree read" "$(host_digest "$scratch/export/tree")" "$(guest_digest /mnt/tree)"
    inside -t 120 'cp -a /mnt/tree /mnt/copy'
    equal "a tree written" "$(host_digest "$scratch/export/tree")" "$(host_digest "$scratch/export/copy")"
    equal "modes and times" "$(attributes "$scratch/export/tree" seconds)" "$(attributes "$scratch/export/copy" seconds)"
    fact bytes $((33554433 * 2 + 2 * $(bytes_in "$scratch/export/tree")))
    finish_mount
}

scenario mount-writers client 'Linux mounts our server: 16 processes write 2 MiB each at one time and sync'
mount_writers() {
    serve
    mount_ours
    inside -t 200 '/interop/writers /mnt 16 2' >"$scratch/sums"
    (cd "$scratch/export" && md5sum w*) | diff "$scratch/sums" -
    fact bytes $((16 * 2097152))
    finish_mount
}

scenario mount-dbench client 'Linux mounts our server: dbench, 4 processes for 20 s'
mount_dbench() {
    serve
    mount_ours
    inside -t 200 'mkdir /mnt/db; dbench -c /usr/share/dbench/client.txt -D /mnt/db -t 20 4' | tee "$scratch/dbench.log" | tail -4
    # It removes files that it still has open, for which NFS clients keep a name; that this cannot be removed is no fault.
    ! grep -E 'failed|ERROR' "$scratch/dbench.log" | grep -vE 'barrier semaphore|/\.nfs' || { echo "FAILED: dbench complains"; return 1; }
    finish_mount
}

scenario mount-crc 'client --append siw.mpa_crc_required=1' 'the POSIX workload, on a Linux that insists on CRC32c and a server that would do without'
mount_crc() {
    need_root
    inside 'test "$(cat /sys/module/siw/parameters/mpa_crc_required)" = Y' || skip "this siw cannot insist on CRC32c"
    serve --crc off -v
    mount_ours
    posix_workload
    finish_mount
    served_with CRC32c
}

scenario mount-peer-to-peer 'client --append siw.peer_to_peer=1' 'the POSIX workload, on a Linux that starts peer to peer'
mount_peer_to_peer() {
    need_root
    inside 'test "$(cat /sys/module/siw/parameters/peer_to_peer)" = Y' || skip "this siw cannot start peer to peer"
    serve -v
    mount_ours
    posix_workload
    finish_mount
    served_with peer-to-peer
}

scenario mount-restart client 'Linux mounts our server, which stops and starts: open files and handles go on, and it can be mounted again' quick
mount_restart() {
    serve
    mount_ours
    inside 'mkdir -p /mnt/d; echo before >/mnt/d/file; head -c 300000 /dev/urandom >/mnt/d/data; sync; md5sum </mnt/d/data >/tmp/sum
        (exec 5<>/mnt/d/file; echo $$ >/tmp/holder; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo after >&5; cat <&5; exec 5>&-; echo done >/tmp/done) </dev/null >/dev/null 2>&1 &'
    serve_stop
    serve
    forget_cache
    inside -t 100 'test "$(md5sum </mnt/d/data)" = "$(cat /tmp/sum)" || { echo "FAILED: other data after the restart"; exit 1; }; touch /tmp/go; while [ ! -e /tmp/done ]; do sleep 0.1; done; rm -f /tmp/go'
    grep -q after "$scratch/export/d/file"
    unmount
    mount_ours
    inside 'cat /mnt/d/file; echo again >>/mnt/d/file'
    equal "what is in the file and what should be" "$(cat "$scratch/export/d/file")" $'after\n\nagain'
    local again
    read -r _ again < <(linux_counts)
    unmount
    serve_stop
    fact connections "$(served_connections)"
    fact cuts 1
    fact again "$again"
    fact bytes 300000
    expect "connections" "$(served_connections) == 3"
}
