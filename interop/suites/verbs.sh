# RNICs: our verbs provider on Linux's software devices, in a guest. Sourced by `run`.
#
# The libraries and drivers are those of the host (rdma-core, Debian 12), as the guest has the same C library. The provider
# suite is a test program: RPCRDMA_PROVIDER_SUITE names it, or the newest one that was built is taken.

guest_address=10.0.2.15

# Boots the guest `verbs` with a device, our program, and what it loads.
boot_verbs() { # DEVICE [OPTION...]
    local device=$1 tree=$scratch/tree-verbs lib=usr/lib/x86_64-linux-gnu driver library
    shift
    mkdir -p "$tree/$lib/libibverbs" "$tree/etc/libibverbs.d"
    for driver in rxe siw; do
        cp -L /$lib/libibverbs/lib$driver-rdmav*.so "$tree/$lib/libibverbs/" 2>/dev/null ||
            skip "no ibverbs-providers on this machine"
        echo "driver $driver" >"$tree/etc/libibverbs.d/$driver.driver"
    done
    for library in libibverbs.so.1 librdmacm.so.1 libnl-3.so.200 libnl-route-3.so.200; do
        cp -L "/$lib/$library" "$tree/$lib/" 2>/dev/null || cp -L "/lib/x86_64-linux-gnu/$library" "$tree/$lib/" 2>/dev/null ||
            skip "no $library on this machine"
    done
    peer=verbs
    # Under this name, whatever the host calls it.
    ln -sf "$rpcrdma" "$scratch/rpcrdma"
    "$guest" boot verbs --rdma "$device" --add "$scratch/rpcrdma" --share "$tree=/" "$@"
    inside 'uname -r' >"$scratch/kernel"
    # Addresses of version 6, which this network knows nothing of, are for the device itself.
    inside 'echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip -6 addr add fd00::15/64 dev eth0'
    inside 'rpcrdma devices'
}
end_verbs() { "$guest" stop verbs; }

# Our server in the guest, with these options. On each device it is found at all addresses.
verbs_serve() {
    stop_server=verbs_serve_stop
    inside "rm -f /tmp/ready /tmp/serve.status
        { sh -c 'echo \$\$ >/tmp/serve.pid
            exec rpcrdma serve -v --no-rpcbind --no-root-squash --handle-key /tmp/key --ready-file /tmp/ready $* /srv'
            echo \$? >/tmp/serve.status; } </dev/null >/tmp/serve.log 2>&1 &
        for i in \$(seq 200); do [ -s /tmp/ready ] && exit; sleep 0.1; done; cat /tmp/serve.log; exit 1"
}
# Stops it when its connections have ended, and leaves what it has said, with its counters, in $scratch/serve.log.
verbs_serve_stop() {
    inside -t 120 'ended() { grep "^  rdma " /tmp/serve.log | tail -n 1 | grep -q "connections \([0-9,]*\), closed \1,"; }
        for i in $(seq 60); do kill -USR1 $(cat /tmp/serve.pid); sleep 0.3; ended && break; done
        ended || echo "FAILED: connections of the server do not end"
        kill -INT $(cat /tmp/serve.pid); until [ -s /tmp/serve.status ]; do sleep 0.1; done
        cat /tmp/serve.log; ended && ! grep -q panicked /tmp/serve.log && [ $(cat /tmp/serve.status) = 0 ]' | tee -a "$scratch/serve.log"
    expect "Calls beyond the grant" "$(last_count 'beyond the grant') == 0"
}

# --- The provider suite ---

# Runs these tests of it at an address, by name. Every one has to pass, and those that say that they have tried less than they
# are for, as this device cannot do it, have to be those that match a pattern.
suite_at() { # ADDRESS PATTERN TEST...
    local run="RPCRDMA_VERBS_ADDRESS=$1 provider_suite --test-threads 1 --show-output --exact" less=$2
    shift 2
    expect "tests to run" "$# > 0"
    inside -t 900 "$run $*" >"$scratch/part.log" || { cat "$scratch/part.log"; return 1; }
    cat "$scratch/part.log"
    equal "the tests and those that passed" "$(sorted "$@")" \
        "$(sed -nE 's/^test (.*) \.\.\. ok$/\1/p' "$scratch/part.log" | LC_ALL=C sort)"
    equal "the tests that cannot try all here and those that say so" "$(sorted "$@" | grep -E "$less")" \
        "$(awk '$1 == "----" { test = $2 } $1 == "skipped:" { print test }' "$scratch/part.log" | LC_ALL=C sort -u)"
}
sorted() { printf '%s\n' "$@" | LC_ALL=C sort; }

verbs_suite() { # DEVICE PATTERN of tests that cannot try all they are for
    local program=${RPCRDMA_PROVIDER_SUITE:-} device=$1 less=$2 module all windows late
    if [[ ! $program ]]; then
        program=$(find "${CARGO_TARGET_DIR:-$root/target}" -path '*/deps/provider_suite-*' -type f -executable -printf '%T@ %p\n' \
            2>/dev/null | sort -rn | head -1 | cut -d' ' -f2- || true)
    fi
    [[ $program ]] || skip "the provider suite is not built: cargo test -p rpcrdma-tests --test provider_suite --no-run"
    cp "$program" "$scratch/provider_suite"
    boot_verbs "$device" --add "$scratch/provider_suite"
    inside 'provider_suite --list --format terse' | sed -n 's/: test$//p' >"$scratch/tests"
    of() { sed -n "s/^$1:://p" "$scratch/tests"; }
    for module in verbs verbs_without_windows verbs_spinning; do
        equal "the tests of $module and of softiwarp" "$(of softiwarp_with_crc)" "$(of $module)"
    done
    mapfile -t all < <(grep -E '^verbs(_without_windows|_spinning)?::' "$scratch/tests")
    mapfile -t late < <(printf '%s\n' "${all[@]}" | grep memory_is_free_when_work_is_done)
    mapfile -t windows < <(printf '%s\n' "${all[@]}" | grep '^verbs::')
    suite_at "$guest_address" "$less" "${all[@]}"
    # What a device sends late shows what it looks at late.
    inside '/usr/bin/tc qdisc add dev lo root netem delay 4ms'
    suite_at "$guest_address" "$less" "${late[@]}"
    inside '/usr/bin/tc qdisc del dev lo root'
    suite_at fd00::15 "$less" "${windows[@]}"
    end_verbs
}
scenario verbs-suite-rxe none 'the provider suite on RoCE v2 (rxe): memory windows, and registration per Call; IPv4, IPv6' quick
verbs_suite_rxe() { verbs_suite rxe '^verbs_without_windows::a_message_invalidates_a_tag$'; }
scenario verbs-suite-siw none 'the provider suite on iWARP (siw); IPv4, IPv6' quick
verbs_suite_siw() { verbs_suite siw '::(a_message_invalidates_a_tag|rights_are_kept)$'; }

# --- Our client on nfsd, both in the guest ------------------------------------------------------------------------------

# A Call that nfsd says nothing to, for it executes it a first time, is sent once more after ten seconds.
verbs_nfsd() { # DEVICE [OPTION of our client...]
    local how="--provider verbs -vv --mount-port 20048 --timeout 60 --timeo 100 ${*:2}" url=nfs://$guest_address/srv commands=3
    make_tree "$scratch/tree" 100
    boot_verbs "$1" --nfsd --share "$scratch/tree=/given/tree"
    inside -t 300 "rpcrdma cp -r $how /given/tree $url" | tee -a "$scratch/ours.log"
    inside 'echo 3 >/proc/sys/vm/drop_caches'
    inside -t 300 "rpcrdma cp -r $how $url/tree /tmp/back" | tee -a "$scratch/ours.log"
    equal "the files and what was written" "$(host_digest "$scratch/tree")" "$(guest_digest /srv/tree)"
    equal "the files and what was read" "$(host_digest "$scratch/tree")" "$(guest_digest /tmp/back)"
    # A REMOVE that is done twice fails.
    inside -t 300 "rpcrdma rm -r $how $url/tree" | tee -a "$scratch/ours.log"
    inside '[ ! -e /srv/tree ]'
    fact bytes $((2 * $(bytes_in "$scratch/tree")))
    if [[ ! ${2:-} ]]; then
        undisturbed
        expect "connections" "$(made) == $commands"
    else
        # And so does whatever else it can be told to change.
        verbs_mount_in_guest "$how" "$url"
        churn_through_cuts 4 10
        verbs_unmount_in_guest
        count_copy 0 $((commands + 1))
    fi
    end_verbs
}
# Our mount in the guest, through FUSE, and its end; its log is added to ours.log.
verbs_mount_in_guest() { # OPTIONS URL
    inside -t 60 "mkdir -p /mnt; { rpcrdma mount $1 $2 /mnt; echo \$? >/tmp/mount.status; } </dev/null >/tmp/mount.log 2>&1 &
        for i in \$(seq 300); do grep -q ' /mnt fuse' /proc/mounts && exit; sleep 0.1; done; cat /tmp/mount.log; exit 1"
}
verbs_unmount_in_guest() {
    inside -t 60 'umount /mnt; until [ -s /tmp/mount.status ]; do sleep 0.1; done
        cat /tmp/mount.log; ! grep -q panicked /tmp/mount.log && [ $(cat /tmp/mount.status) = 0 ]' | tee -a "$scratch/ours.log"
}
scenario verbs-nfsd-rxe none 'our client with verbs on nfsd over RoCE v2 (rxe): a tree there and back, and its removal'
verbs_nfsd_rxe() { verbs_nfsd rxe; }
scenario verbs-nfsd-siw none 'our client with verbs on nfsd over iWARP (siw): a tree there and back, and its removal'
verbs_nfsd_siw() { verbs_nfsd siw; }
scenario verbs-cuts-rxe none 'the same over RoCE v2 (rxe), and a mount (FUSE) on which 4 processes make, write, rename, link, remove, all exactly once; our client cuts its connections' quick
verbs_cuts_rxe() { verbs_nfsd rxe --inject disconnect=1/100,seed=5; }
scenario verbs-cuts-siw none 'the same over iWARP (siw)' quick
verbs_cuts_siw() { verbs_nfsd siw --inject disconnect=1/100,seed=6; }

# --- Linux mounts our server, both in the guest -------------------------------------------------------------------------

verbs_mount() { # DEVICE [OPTION of our server...]
    local device=$1 mount
    shift
    boot_verbs "$device"
    verbs_serve "--provider verbs --tcp $guest_address:2049 $*"
    mount="mount.nfs $guest_address:/srv /mnt -o rdma,port=20049,vers=3,nolock,mountproto=tcp,mountport=2049"
    inside -t 60 "mkdir -p /mnt; $mount"
    # The server acts as whoever calls, and as nobody else afterwards.
    inside -t 60 'set -e; echo "somebody:x:1000:1000::/:/bin/sh" >>/etc/passwd
        su somebody -c "umask 077; echo his >/mnt/his; mkdir /mnt/dir; echo his >/mnt/dir/file"
        [ "$(stat -c %u:%g /srv/his /srv/dir /srv/dir/file | sort -u)" = 1000:1000 ]
        echo "of root" >>/mnt/his; echo 3 >/proc/sys/vm/drop_caches; cat /mnt/his >/tmp/his
        su somebody -c "cat /mnt/his" | cmp - /tmp/his; cmp /srv/his /tmp/his; [ $(wc -l </tmp/his) = 2 ]
        (umask 077; echo secret >/mnt/secret); ! su somebody -c "cat /mnt/secret"
        ! su somebody -c "echo more >>/mnt/secret"; [ "$(cat /mnt/secret)" = secret ]
        [ "$(stat -c %u:%g /srv/his /srv/secret | tr "\n" " ")" = "1000:1000 0:0 " ]
        rm -r /mnt/his /mnt/dir /mnt/secret; [ -z "$(ls -A /srv)" ]'
    inside -t 300 '/interop/posix /mnt/p'
    inside -t 300 'dd if=/dev/urandom of=/tmp/up bs=1M count=16 2>/dev/null; cp /tmp/up /mnt/up; sync; echo 3 >/proc/sys/vm/drop_caches
        cmp /tmp/up /mnt/up && cmp /tmp/up /srv/up'
    fact bytes $((2 * 16777216))
    if [[ $* ]]; then
        churn_through_cuts 4 10
        count_mount 0
    else
        finish_mount
        expect "connections that our server saw" "$(served_connections) == 1"
    fi
    end_verbs
}
scenario verbs-mount-rxe none 'Linux mounts our server with verbs over RoCE v2 (rxe): the POSIX workload, 16 MiB each way, a caller other than root' quick
verbs_mount_rxe() { verbs_mount rxe; }
scenario verbs-mount-siw none 'Linux mounts our server with verbs over iWARP (siw): the POSIX workload, 16 MiB each way, a caller other than root' quick
verbs_mount_siw() { verbs_mount siw; }
scenario verbs-mount-cuts-rxe none 'the same over RoCE v2 (rxe), and 4 processes make, write, rename, link, remove, all exactly once; our server cuts its connections' quick
verbs_mount_cuts_rxe() { verbs_mount rxe --inject disconnect=1/200,seed=7; }
scenario verbs-mount-cuts-siw none 'the same over iWARP (siw)' quick
verbs_mount_cuts_siw() { verbs_mount siw --inject disconnect=1/200,seed=7; }

# --- The commands, and what they say -------------------------------------------------------------------------------------

says() { # WHAT PATTERN FILE
    if grep -qE -- "$2" "$3"; then echo "ok: $1"; else echo "FAILED: $1: nothing of \"$2\" in"; cat "$3"; return 1; fi
}

verbs_commands() { # DEVICE TRANSPORT PROTECTION
    local device=$1 transport=$2 protection=$3 url=nfs://$guest_address/srv how='--provider verbs --timeout 60' address
    make_tree "$scratch/tree" 10
    boot_verbs "$device" --share "$scratch/tree=/given/tree"

    inside 'rpcrdma devices' >"$scratch/devices.log"
    says 'devices names it' "^${device}0  $transport on eth0 with $guest_address and fd00::15, usable$" "$scratch/devices.log"
    says 'devices says its limits' '[0-9,]+ requests per queue, .* registrations, messages to' "$scratch/devices.log"
    inside 'cd /dev/infiniband; mv rdma_cm away; rpcrdma devices; mv away rdma_cm' >"$scratch/no-cm.log"
    says 'devices says why not' 'not usable: there is no /dev/infiniband/rdma_cm: load the module rdma_ucm' "$scratch/no-cm.log"
    inside 'mv /usr/lib/x86_64-linux-gnu/librdmacm.so.1 /tmp; rpcrdma devices 2>&1; status=$?
        mv /tmp/librdmacm.so.1 /usr/lib/x86_64-linux-gnu; [ $status = 1 ]' >"$scratch/no-library.log"
    says 'devices says what is missing' 'no RDMA libraries .*librdmacm1' "$scratch/no-library.log"

    # Under no address in particular it is found at all of them.
    verbs_serve --provider verbs --tcp none
    for address in "$guest_address" '[fd00::15]'; do
        inside "rpcrdma ping -c 3 -i 0.05 $how nfs://$address" >"$scratch/ping.log"
        says "ping over $address" '^3 round trips' "$scratch/ping.log"
        says 'ping says over what' "$transport, ${device}0, $protection" "$scratch/ping.log"
    done
    inside "rpcrdma ping -v -c 3 -i 0.05 --provider auto nfs://$guest_address 2>&1" >"$scratch/auto.log"
    says 'auto takes the RNIC' "$transport ${device}0 leads there" "$scratch/auto.log"
    says 'auto goes over it' "$transport, ${device}0, $protection" "$scratch/auto.log"
    inside "rpcrdma serve --provider softiwarp --listen 127.0.0.1:20050 --tcp none --no-rpcbind --handle-key /tmp/key \
        --ready-file /tmp/soft /srv </dev/null >/tmp/soft.log 2>&1 & for i in \$(seq 200); do [ -s /tmp/soft ] && exit; sleep 0.1; done; exit 1"
    inside 'rpcrdma ping -v -c 3 -i 0.05 --provider auto nfs://127.0.0.1:20050 2>&1' >"$scratch/auto.log"
    says 'auto takes software iWARP' 'software iWARP: .*no RDMA device leads to 127.0.0.1' "$scratch/auto.log"

    # Nothing arrives any more: who connects gives up in time, though siw's system call waits for TCP, and one thread has to do.
    # What rxe sends to itself does not pass an interface.
    if [[ $device = siw ]]; then
        inside -t 150 "/usr/bin/tc qdisc add dev lo root netem loss 100%
            TOKIO_WORKER_THREADS=1 timeout 100 rpcrdma ping -c 1 --provider verbs --timeout 5 nfs://$guest_address 2>&1; echo status \$?
            /usr/bin/tc qdisc del dev lo root" >"$scratch/silent.log"
        says 'a silent network is given up' '^status 1$' "$scratch/silent.log"
    fi

    # Somebody else than root: the server acts as him, and connections can be made afterwards, too.
    inside -t 200 "chmod 666 /dev/infiniband/*; cp -r /given/tree /tmp/his; chown -R 65534:65534 /tmp/his
        su -s /bin/sh nobody -c 'rpcrdma cp -r $how /tmp/his $url && rpcrdma cp -r $how $url/his /tmp/back'"
    equal "the files and what was written" "$(host_digest "$scratch/tree")" "$(guest_digest /srv/his)"
    equal "the files and what was read" "$(host_digest "$scratch/tree")" "$(guest_digest /tmp/back)"
    inside '[ $(stat -c %u /srv/his/sizes/1) = 65534 ]'
    inside "ulimit -l 64; ! su -s /bin/sh nobody -c 'rpcrdma ping -c 1 $how nfs://$guest_address' 2>&1" >"$scratch/limit.log"
    says 'too small a limit of locked memory' 'may lock 64 KiB: raise the limit with `ulimit -l`' "$scratch/limit.log"

    inside -t 60 "mkdir -p /mnt; rpcrdma mount --background $how $url /mnt"
    inside -t 300 '/interop/posix /mnt/p'
    inside -t 200 'dd if=/dev/urandom of=/tmp/up bs=1M count=8 2>/dev/null; cp /tmp/up /mnt/up; cmp /tmp/up /srv/up
        umount /mnt; cp /srv/up /srv/down'
    inside -t 200 "rpcrdma mount --background $how $url /mnt; cmp /tmp/up /mnt/down; status=\$?; umount /mnt; exit \$status"

    inside -t 200 "rpcrdma demo --provider verbs --cuts 6 --to /tmp /given/tree 2>&1" | tee "$scratch/demo.log"
    inside -t 200 'rpcrdma bench --provider verbs --only read,write,null --pairs 1 --seconds 0.2 --size 4M --dir /srv' | tee "$scratch/bench.log"
    fact bytes $((2 * $(bytes_in "$scratch/tree") + 2 * 8388608))
    verbs_serve_stop
    inside "rdma link delete ${device}0; ! rpcrdma devices 2>&1" >"$scratch/no-device.log"
    says 'devices says that there is none' 'this machine has no RDMA device' "$scratch/no-device.log"
    inside "! rpcrdma ping $how nfs://$guest_address 2>&1" >"$scratch/no-device.log"
    says 'ping says that there is none' 'this machine has no RDMA device' "$scratch/no-device.log"
    end_verbs
}
scenario verbs-commands-rxe none 'devices, ping, cp, mount (FUSE), demo, bench over RoCE v2 (rxe); IPv4, IPv6, as root and not, what auto takes, what is said if something is missing'
verbs_commands_rxe() { verbs_commands rxe RoCE 'memory windows'; }
scenario verbs-commands-siw none 'the same over iWARP (siw)' quick
verbs_commands_siw() { verbs_commands siw iWARP 'registration per call'; }

# The kernel waits until nobody has the device open any more, and librdmacm keeps the last one open (docs/verbs.md). So both
# ends have to go before it has gone.
verbs_removal() { # DEVICE
    boot_verbs "$1"
    # At one address, as a listener at all of them does not care.
    verbs_serve --provider verbs --listen $guest_address --tcp none
    inside -t 150 "rpcrdma ping -v -c 0 -i 0.01 --provider verbs --timeout 100 nfs://$guest_address >/tmp/ping.log 2>&1 & ping=\$!
        has() { for i in \$(seq 300); do grep -q \"\$1\" \$2 && return; sleep 0.1; done; echo \"FAILED: nothing of \$1\"; cat /tmp/ping.log /tmp/serve.log; exit 1; }
        has '^ *20 ' /tmp/ping.log
        rdma link delete ${1}0 & removal=\$!
        has 'the RDMA device has gone' /tmp/serve.log
        has 'RDMA connection ended' /tmp/serve.log
        has 'connection lost' /tmp/ping.log
        has 'no RDMA device leads to .*trying on' /tmp/ping.log
        kill \$ping \$(cat /tmp/serve.pid); wait \$removal || exit 1
        if grep panicked /tmp/ping.log /tmp/serve.log; then exit 1; fi; grep -v '^ ' /tmp/ping.log
        rdma link add ${1}0 type $1 netdev eth0"
    verbs_serve --provider verbs --tcp none
    inside "rpcrdma ping -c 3 -i 0.05 --provider verbs nfs://$guest_address" >"$scratch/ping.log"
    says 'the device is back' '^3 round trips' "$scratch/ping.log"
    verbs_serve_stop
    end_verbs
}
scenario verbs-removal-rxe none 'a device of RoCE v2 (rxe) is removed under our client and server, which lose the connection and wait for another' quick
verbs_removal_rxe() { verbs_removal rxe; }
scenario verbs-removal-siw none 'the same with a device of iWARP (siw)'
verbs_removal_siw() { verbs_removal siw; }

# The port of a device goes down with its interface. Both ends lose the connection, and both can be ended at any time. What a
# device makes of an interface that is up again, it says for itself: siw goes on, even before that, as what comes from its own
# machine goes through no interface; rxe answers nobody until it has been made anew.
verbs_port() { # DEVICE WHAT-THE-CLIENT-SAYS-THEN [COMMAND that helps the device]
    boot_verbs "$1"
    verbs_serve --provider verbs --tcp none
    # The way to this guest is through the same interface, so it has to be up again whatever happens.
    inside -t 200 "{ sh -c 'echo \$\$ >/tmp/ping.pid
            exec rpcrdma ping -v -c 0 -i 0.01 --provider verbs --timeout 0 nfs://$guest_address'
            echo \$? >/tmp/ping.status; } </dev/null >/tmp/ping.log 2>&1 &
        has() { for i in \$(seq 400); do grep -q \"\$1\" \$2 && return; sleep 0.1; done; echo \"FAILED: nothing of \$1\"; cat /tmp/serve.log; grep -v '^ ' /tmp/ping.log; exit 1; }
        trap 'ip link set eth0 up' EXIT
        trap 'exit 1' TERM
        has '^ *20 ' /tmp/ping.log
        ip link set eth0 down
        has 'RDMA connection ended: ' /tmp/serve.log
        has 'connection lost: ' /tmp/ping.log
        grep -h 'RDMA connection ended: the connection broke: network down\|connection lost: the connection broke: network down' /tmp/serve.log /tmp/ping.log || exit 1
        ip link set eth0 up
        has '$2' /tmp/ping.log
        kill -INT \$(cat /tmp/ping.pid)
        has 0 /tmp/ping.status
        if grep panicked /tmp/ping.log; then exit 1; fi; grep -v '^ ' /tmp/ping.log"
    verbs_serve_stop
    inside "${3:-true}"
    verbs_serve --provider verbs --tcp none
    inside "rpcrdma ping -c 3 -i 0.05 --provider verbs nfs://$guest_address" >"$scratch/ping.log"
    says 'it goes on' '^3 round trips' "$scratch/ping.log"
    verbs_serve_stop
    end_verbs
}
scenario verbs-port-rxe none 'the port of a device of RoCE v2 (rxe) goes down under our client and server, which lose the connection and end when they are told to'
verbs_port_rxe() { verbs_port rxe 'no connection: .*trying on' 'rdma link delete rxe0; rdma link add rxe0 type rxe netdev eth0'; }
scenario verbs-port-siw none 'the same with a device of iWARP (siw), over which they go on'
verbs_port_siw() { verbs_port siw 'the server answers again'; }

# --- Two iWARP stacks on one TCP connection: verbs on siw in the guest, software iWARP on the host ----------------------

scenario verbs-softiwarp-client none 'software iWARP on the host on our server with verbs over siw in the guest: a tree there and back, and its removal, with cuts' quick
verbs_softiwarp_client() {
    make_tree "$scratch/tree" 100
    boot_verbs siw --forward 20049
    verbs_serve --provider verbs --tcp none
    local how=(--timeout 60 --crc off --inject disconnect=1/200,seed=8)
    ours cp -r "${how[@]}" "$scratch/tree" "$(url)"
    equal "the files and what was written" "$(host_digest "$scratch/tree")" "$(guest_digest /srv/tree)"
    ours cp -r "${how[@]}" "$(url /tree)" "$scratch/back"
    diff -r --no-dereference "$scratch/tree" "$scratch/back"
    ours rm -r "${how[@]}" "$(url /tree)"
    inside '[ ! -e /srv/tree ]'
    fact bytes $((2 * $(bytes_in "$scratch/tree")))
    count_copy 0 3
    verbs_serve_stop
    executed_once "$scratch/tree"
    expect "connections that our server saw" "$(served_connections) <= $(made)"
    end_verbs
}

scenario verbs-softiwarp-server none 'our client with verbs over siw in the guest on software iWARP on the host: a tree there and back, and its removal, with cuts' quick
verbs_softiwarp_server() {
    make_tree "$scratch/tree" 100
    serve
    boot_verbs siw --share "$scratch/tree=/given/tree"
    local how="--provider verbs -vv --timeout 60 --inject disconnect=1/200,seed=9" url=nfs://10.0.2.2:$rdma_port/export
    inside -t 300 "rpcrdma cp -r $how /given/tree $url" | tee -a "$scratch/ours.log"
    inside -t 300 "rpcrdma cp -r $how $url/tree /tmp/back" | tee -a "$scratch/ours.log"
    equal "the files and what was written" "$(host_digest "$scratch/tree")" "$(host_digest "$scratch/export/tree")"
    equal "the files and what was read" "$(host_digest "$scratch/tree")" "$(guest_digest /tmp/back)"
    inside -t 300 "rpcrdma rm -r $how $url/tree" | tee -a "$scratch/ours.log"
    [[ ! -e $scratch/export/tree ]]
    fact bytes $((2 * $(bytes_in "$scratch/tree")))
    count_copy 0 3
    within_the_grant
    executed_once "$scratch/tree"
    serve_stop
    expect "connections that our server saw" "$(served_connections) <= $(made)"
    end_verbs
}
