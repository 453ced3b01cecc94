# Sourced after common.sh and apt.sh. A Go toolchain on a machine that has none, or an old one.
# shellcheck shell=bash

# need_go: puts a Go at least as new as go.mod asks into PATH. Any Go from 1.21 on fetches the right one by itself
# (GOTOOLCHAIN=auto); Debian 12's 1.19 does not, but it can download the same toolchain module.
need_go() {
  local want have dir
  want=$(sed -n 's/^go //p' "$REPO_DIR/go.mod")
  need_packages ca-certificates
  if ! command -v go >/dev/null; then need_packages golang-go; fi
  have=$(go version | sed -E 's/^go version go([0-9.]+).*/\1/')
  if [ "$(printf '%s\n' "$want" "$have" | sort -V | head -1)" = "$want" ]; then return 0; fi
  step "Go $have is older than $want: fetching the toolchain module"
  dir=$(cd / && GOFLAGS=-mod=mod GOTOOLCHAIN=local go mod download -json "golang.org/toolchain@v0.0.1-go$want.linux-$(go env GOARCH)" |
    sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  [ -x "$dir/bin/go" ] || chmod +x "$dir"/bin/* "$dir"/pkg/tool/*/* 2>/dev/null || true
  [ -x "$dir/bin/go" ] || die "no Go $want could be had: install it from https://go.dev/dl and put it into PATH"
  export PATH=$dir/bin:$PATH GOTOOLCHAIN=local
}
