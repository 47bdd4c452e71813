# Shared by the programs of this folder; bash, sourced.
#
# Settings in the environment:
#   RPCRDMA_INTEROP_CACHE   where packages, kernel and images are kept (default ~/.cache/rpcrdma-interop)
#   RPCRDMA_INTEROP_KERNEL  a kernel with all it needs built in (bzImage or vmlinux, also .xz), instead of Debian's

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
cache=${RPCRDMA_INTEROP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/rpcrdma-interop}
kernel_given=${RPCRDMA_INTEROP_KERNEL:-}

# The status that says: this could not be tried here.
SKIPPED=3
me=$(basename "$0")
die() { echo "$me: $*" >&2; exit 1; }
skip() { echo "SKIP: $*"; exit $SKIPPED; }
say() { echo "$me: $*" >&2; }
has() { command -v "$1" >/dev/null; }

# Waits up to $1 seconds for a command to succeed.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    while ((SECONDS <= end)); do
        "$@" && return
        sleep 0.1
    done
    return 1
}

# A port of the loopback address that nobody listens at.
free_port() {
    local port
    while :; do
        port=$((20100 + RANDOM % 12000))
        (exec 9<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
}
