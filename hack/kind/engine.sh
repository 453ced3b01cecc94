# Sourced after settings.sh. Starts and stops the private Docker Engine: Debian's docker.io, only unpacked, in mount, pid, net,
# uts, ipc and cgroup namespaces of its own. Nothing is installed as a service and nothing of it outlives engine_stop.
# shellcheck shell=bash

cgroup_v1() { [ ! -e /sys/fs/cgroup/cgroup.controllers ]; }

# The cgroup directories of the engine, one for each hierarchy of the machine: a single one on cgroup v2; on v1 one for each
# controller (a symlink, such as cpu -> cpu,cpuacct, is a second name of one), and on a hybrid machine the v2 tree too.
engine_cgroups() {
  local h
  if ! cgroup_v1; then
    echo "/sys/fs/cgroup/$ENGINE_NAME"
    return
  fi
  for h in /sys/fs/cgroup/*; do
    if [ -d "$h" ] && [ ! -L "$h" ]; then echo "$h/$ENGINE_NAME"; fi
  done
}

engine_unpack() { cache_fill "$(engine_packages_path)" engine_unpack_fill; }
engine_unpack_fill() {
  local packages=("${ENGINE_PACKAGES[@]}")
  # From Debian 13 on the client is a package of its own.
  apt_locked apt_update
  if apt-cache show docker-cli >/dev/null 2>&1; then packages+=(docker-cli); fi
  step "unpacking ${packages[*]} (not installed: no service may start)"
  unpack_packages "$1" "${packages[@]}"
}

engine_running() { process_alive "$ENGINE_DIR/init"; }

engine_start() {
  if engine_running; then
    if docker_answers; then
      info "engine already running"
      return 0
    fi
    warn "the engine runs but does not answer: starting it anew"
  fi
  engine_stop # also what an earlier, half-failed start left
  need_packages iptables iproute2 util-linux libdevmapper1.02.1 libsystemd0 libseccomp2 jq
  engine_unpack
  mkdir -p "$ENGINE_DIR/logs" "$SHARED_DIR" "$ENGINE_STORE"
  engine_make_cgroups
  engine_spawn
  # The network device goes with the namespace, so this end vanishes with the engine.
  ip link add "${ENGINE_NAME}h" type veth peer name eth0 netns "$(process_pid "$ENGINE_DIR/init")"
  ip addr add "$ENGINE_HOST_IP/30" dev "${ENGINE_NAME}h"
  ip link set "${ENGINE_NAME}h" up
  wait_for 60 docker_answers || { tail -20 "$ENGINE_DIR"/logs/*.log >&2; die "the engine does not answer"; }
  info "$(docker info --format 'Docker {{.ServerVersion}}, {{.Driver}}, cgroup v{{.CgroupVersion}}')"
}

engine_make_cgroups() {
  local g f parent
  for g in $(engine_cgroups); do
    mkdir -p "$g"
    if ! cgroup_v1; then mkdir -p "$g/init"; fi
    parent=$(dirname "$g")
    # A v1 cpuset accepts no process before it has CPUs and memory nodes, and hands nothing down unless told to.
    if [ -e "$g/cpuset.mems" ] && cgroup_v1; then
      for f in cpus mems; do cat "$parent/cpuset.$f" >"$g/cpuset.$f"; done
      echo 1 >"$g/cgroup.clone_children"
    fi
  done
}

# engine_spawn: records two processes: "outer" (unshare, in our pid namespace's view the parent) and "init" (pid 1 inside).
engine_spawn() {
  local outer init
  ENGINE_CGROUPS=$(engine_cgroups) ENGINE_UNPACKED=$(engine_packages_path) RUNTIME_WRAPPER=$KIND_DIR/runc-wrapper.sh
  export ENGINE_CGROUPS ENGINE_UNPACKED RUNTIME_WRAPPER ENGINE_DIR ENGINE_STORE ENGINE_NAME ENGINE_HOST_IP ENGINE_IP ENGINE_SOCKET STATE_DIR SHARED_DIR
  # shellcheck disable=SC2016 # expanded by the inner shell
  setsid bash -c '
    for g in $ENGINE_CGROUPS; do echo $$ >"$g/cgroup.procs"; done
    exec unshare --cgroup --mount --propagation private --pid --fork --kill-child --mount-proc --net --uts --ipc "$0"
  ' "$KIND_DIR/engine-init.sh" >"$ENGINE_DIR/logs/init.log" 2>&1 </dev/null &
  outer=$!
  process_record "$ENGINE_DIR/outer" "$outer" || die "the engine ended at once: $ENGINE_DIR/logs/init.log"
  wait_for 10 engine_find_init "$outer" || { cat "$ENGINE_DIR/logs/init.log" >&2; die "the engine's namespaces were not made"; }
  # See mount_cgroups in engine-init.sh.
  if ! cgroup_v1; then echo "$outer" >"/sys/fs/cgroup/$ENGINE_NAME/init/cgroup.procs"; fi
  init=$(engine_find_init "$outer")
  process_record "$ENGINE_DIR/init" "$init"
}

# The child of unshare, once it is in a network namespace of its own.
engine_find_init() {
  local child
  read -r child _ <"/proc/$1/task/$1/children" || true
  [ -n "$child" ] && [ "$(readlink "/proc/$child/ns/net")" != "$(readlink /proc/self/ns/net)" ] && echo "$child"
}

# engine_stop: the pid namespace, and with it every process, ends with its first one. Safe to call at any time.
engine_stop() {
  local g
  process_kill "$ENGINE_DIR/init" || die "process $(process_pid "$ENGINE_DIR/init") does not end (blocked in the kernel?)"
  process_kill "$ENGINE_DIR/outer" || die "process $(process_pid "$ENGINE_DIR/outer") does not end"
  # It goes with the engine's network namespace, which may be happening just now.
  if ! ip link del "${ENGINE_NAME}h" 2>/dev/null && ip link show "${ENGINE_NAME}h" >/dev/null 2>&1; then
    wait_for 10 engine_link_is_gone || die "network device ${ENGINE_NAME}h does not go away"
  fi
  for g in $(engine_cgroups); do
    if ! wait_for 10 engine_remove_cgroup "$g"; then warn "cgroup $g is still in use"; fi
  done
  rm -f "$ENGINE_SOCKET"
}
engine_link_is_gone() { ! ip link show "${ENGINE_NAME}h" >/dev/null 2>&1; }
engine_remove_cgroup() {
  if [ ! -d "$1" ]; then return 0; fi
  find "$1" -depth -type d -exec rmdir {} \; 2>/dev/null || true
  [ ! -d "$1" ]
}
