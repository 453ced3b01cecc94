#!/usr/bin/env bash
# Plays COUNT (1000) random sequences on every format that the engine writes, or on KIND, against qemu and libvmdk. SEED replays.
set -euo pipefail
# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=hack/lib/apt.sh
. "$HACK_DIR/lib/apt.sh"
# shellcheck source=hack/lib/go.sh
. "$HACK_DIR/lib/go.sh"
need_packages qemu-utils python3-libvmdk
need_go
cd "$REPO_DIR"
[ ! -w /dev/shm ] || export TMPDIR=${TMPDIR:-/dev/shm}
export COUNT=${COUNT:-1000}
go test ./pkg/vmdk/chain -count=1 -timeout 12h -v -run '^TestPeerSequences$' | grep -Ev '^ *(===|--- PASS: .*/sequence)'
