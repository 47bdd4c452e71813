# Our client uses Linux's server. Sourced by `run`.

# A tree there and back, and every command of ours, with the given options.
tree_on_nfsd() {
    local tree=$scratch/tree how=(--mount-port "$(mount_port)" "$@") entries
    make_tree "$tree" 400
    ours cp -r "${how[@]}" "$tree" "$(url /)"
    equal "the files and what was written" "$(host_digest "$tree")" "$(guest_digest /srv/tree)"
    inside 'echo 3 >/proc/sys/vm/drop_caches'
    ours cp -r "${how[@]}" "$(url /tree)" "$scratch/back"
    diff -r --no-dereference "$tree" "$scratch/back"
    equal "modes and times" "$(attributes "$tree")" "$(attributes "$scratch/back")"
    entries=$(ours ls -R "${how[@]}" "$(url /tree)" | grep -c 'an-entry-with')
    expect "entries listed" "$entries == 400"
    ours stat "${how[@]}" "$(url /tree/sizes/4097)" | grep 4097
    ours cat "${how[@]}" "$(url /tree/sizes/1048577)" | cmp - "$tree/sizes/1048577"
    # As large as the guest's init makes it.
    ours df "${how[@]}" "$(url /)" | grep -F '600.0 MiB'
    ours mkdir "${how[@]}" "$(url /made)"
    inside 'test -d /srv/made'
    ours rm -r "${how[@]}" "$(url /tree)" "$(url /made)"
    inside 'test ! -e /srv/tree -a ! -e /srv/made'
    fact bytes $((2 * $(bytes_in "$tree")))
    undisturbed
}

# What there is to say of a scenario without faults.
undisturbed() {
    fact cuts 0
    fact connections "$(made)"
    fact again "$(sent_again)"
    expect "connections lost" "$(losses) == 0"
}

scenario nfsd-tree server 'our client on nfsd: a tree of all sizes, long links and 400 entries there and back; ls, stat, cat, df, mkdir, rm' quick
nfsd_tree() { tree_on_nfsd --crc off; }

scenario nfsd-tree-crc server 'the same, and our client asks for CRC32c'
nfsd_tree_crc() {
    tree_on_nfsd --crc on
    agreed CRC32c
}

scenario nfsd-archive server 'our client on nfsd: cp -a of hard links, owners, a device, a FIFO and a file with holes there and back; exports; a part of a file' quick
nfsd_archive() {
    local tree=$scratch/archive how=(--mount-port "$(mount_port)")
    ((EUID == 0)) || skip "owners and devices are for root"
    mkdir -p "$tree/dir"
    mknod "$tree/device" c 1 3 || skip "no device can be made here"
    mkfifo -m 640 "$tree/fifo"
    head -c 10001 /dev/urandom >"$tree/file"
    ln "$tree/file" "$tree/dir/another-name"
    truncate -s 5M "$tree/holes"
    printf end >>"$tree/holes"
    chown 12:34 "$tree/file" "$tree/dir"
    listing() { (cd "$1" && find . -printf '%P %y %m %U:%G %n\n' | LC_ALL=C sort && stat -c %t:%T device); }

    ours ls "${how[@]}" "$(url | sed 's#/srv$##')" | grep -x /srv
    ours cp -a "${how[@]}" "$tree" "$(url /)"
    equal "the files and what was written" "$(host_digest "$tree")" "$(guest_digest /srv/archive)"
    inside 'cd /srv/archive; set -e
        test "$(stat -c %i file)" = "$(stat -c %i dir/another-name)"; test "$(stat -c %u:%g dir)" = 12:34; test -p fifo
        test "$(stat -c %t:%T device)" = 1:3'
    ours cp -a "${how[@]}" "$(url /archive)" "$scratch/back"
    equal "the files and what was read" "$(host_digest "$tree")" "$(host_digest "$scratch/back")"
    equal "types, modes, owners and links" "$(listing "$tree")" "$(listing "$scratch/back")"
    equal "modes and times" "$(attributes "$tree")" "$(attributes "$scratch/back")"
    ours cat "${how[@]}" --offset 4095 --length 5003 "$(url /archive/file)" | cmp - <(tail -c +4096 "$tree/file" | head -c 5003)
    ours stat "${how[@]}" --json "$(url /archive/holes)" | grep 5242883
    ours rm "${how[@]}" -f "$(url /nothing)"
    ours rm "${how[@]}" -r "$(url /archive)"
    inside 'test ! -e /srv/archive'
    fact bytes $((2 * $(bytes_in "$tree")))
    undisturbed
}

scenario nfsd-probe server 'rpcrdma probe on nfsd: all verdicts are those of docs/probe-linux.md' quick
nfsd_probe() {
    verdicts() { grep -E '^  (conforms|tolerated|deviates|skipped) ' "$1"; }
    # It says with its status that something deviates.
    ours probe --mount-port "$(mount_port)" --timeout 10 --write --hostile "$(url)" | tee "$scratch/report" || true
    diff <(verdicts "$root/docs/probe-linux.md") <(verdicts "$scratch/report")
}

scenario nfsd-large server 'our client on nfsd: 48 MiB and an odd byte in WRITEs and READs of 1 MiB, 64 in flight' quick
nfsd_large() {
    local how=(--mount-port "$(mount_port)")
    head -c 50331649 /dev/urandom >"$scratch/large"
    ours cp "${how[@]}" "$scratch/large" "$(url /large)"
    equal "the file and what was written" "$(md5sum <"$scratch/large" | cut -c1-32)" "$(inside 'md5sum </srv/large' | cut -c1-32)"
    ours cp "${how[@]}" "$(url /large)" "$scratch/back"
    cmp "$scratch/large" "$scratch/back"
    ours cp --nconnect 4 "${how[@]}" "$(url /large)" "$scratch/back4"
    cmp "$scratch/large" "$scratch/back4"
    ours rm "${how[@]}" "$(url /large)"
    fact bytes $((3 * 50331649))
    undisturbed
}

scenario nfsd-credits server 'our client on nfsd: asks for 128 credits, is granted 64, 5,000 NULL with 128 waiting'
nfsd_credits() {
    ours probe --only first-grant,later-grants "$(url)" | tee "$scratch/grants"
    grep -F '64 for the 128 asked for' "$scratch/grants"
    grep -F 'always 64' "$scratch/grants"
    ours ping -c 5000 -i 0 -d 128 "$(url)" | tee "$scratch/ping" | tail -2
    grep -E '^5,?000 round trips in ' "$scratch/ping"
    undisturbed
}

# --peer-to-peer is a wish, so whether the server agreed is looked at.
starts_peer_to_peer() { ours ping -c 3 -i 0 --peer-to-peer "$(url)" | grep 'iWARP/TCP.*peer-to-peer'; }

scenario nfsd-start-peer-to-peer server 'our client on nfsd: the same tree, and our client starts peer to peer' quick
nfsd_start_peer_to_peer() {
    starts_peer_to_peer
    tree_on_nfsd --crc off --peer-to-peer
}

# siw answers the MPA Request before it listens for FPDUs: one that comes too soon lies unread until more comes.
scenario nfsd-first-fpdu server 'our client on nfsd: 200 connections, each one Call at once; none may stall'
nfsd_first_fpdu() {
    local i from to
    for ((i = 0; i < 200; i++)); do
        from=${EPOCHREALTIME/./}
        ours ping -c 1 --timeout 10 "$(url)" >/dev/null
        to=${EPOCHREALTIME/./}
        echo $(((to - from) / 1000))
    done | sort -n >"$scratch/took"
    # Those of the whole command, on a guest that is emulated; where one is overlooked, it takes a second or more.
    echo "the command took $(sed -n 100p "$scratch/took") ms in the middle, $(sed -n 190p "$scratch/took") ms at most in 19 of 20"
    expect "ms that the slowest command took" "$(tail -1 "$scratch/took") < 1000"
    undisturbed
    expect "connections" "$(made) == 200"
}

scenario nfsd-crc-required 'server --append siw.mpa_crc_required=1' 'our client on an nfsd whose siw is told to insist on CRC32c, and takes a client that does without'
nfsd_crc_required() {
    inside 'test "$(cat /sys/module/siw/parameters/mpa_crc_required)" = Y' || skip "this siw cannot insist on CRC32c"
    tree_on_nfsd --crc off
    # Its client insists (mount-crc); of its server nobody hears.
    agreed 'no CRC'
}

need_siw_peer_to_peer() {
    inside 'test "$(cat /sys/module/siw/parameters/peer_to_peer)" = Y' || skip "this siw cannot start peer to peer"
}
scenario nfsd-peer-to-peer 'server --append siw.peer_to_peer=1' 'our client on an nfsd whose siw starts peer to peer'
nfsd_peer_to_peer() {
    need_siw_peer_to_peer
    tree_on_nfsd --crc off
}

scenario nfsd-both-peer-to-peer 'server --append siw.peer_to_peer=1' 'the same, and our client starts peer to peer, too, with CRC32c'
nfsd_both_peer_to_peer() {
    need_siw_peer_to_peer
    starts_peer_to_peer
    tree_on_nfsd --crc on --peer-to-peer
}
