#!/usr/bin/env bash
# Everything that the tests and the demo need on a fresh machine: Debian packages, Go, and the tools built from Go modules.
#   hack/setup.sh [GROUP...]     the groups of hack/tools/build.sh (default: all)
set -euo pipefail
# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=hack/lib/apt.sh
. "$HACK_DIR/lib/apt.sh"
# shellcheck source=hack/lib/go.sh
. "$HACK_DIR/lib/go.sh"

need_root
need_packages make git gcc libc6-dev qemu-utils python3-libvmdk libnbd-bin nbdkit qemu-system-x86 fio e2fsprogs xfsprogs btrfs-progs util-linux fdisk iproute2 jq
need_go
"$HACK_DIR/tools/build.sh" "$@"
