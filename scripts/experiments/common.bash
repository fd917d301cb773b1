# What the experiments share; they source it. An experiment defines `measure`, which writes $OUT/$NAME.csv, and ends with
# `experiment "$@"`.
# shellcheck shell=bash disable=SC2034
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NAME=$(basename "$0")
SHORT=
OUT=.
WORK=
SCENARIO=
STARTED=
# Names of namespaces that are ours.
SPACES=()

say() { echo "$NAME: $*" >&2; }

die() { say "$*"; exit 1; }

# The injector: of the environment, of this source tree, or of the system.
find_injector() {
  if [ -z "${INJECTOR-}" ]; then
    INJECTOR=$(readlink -f "$HERE/../../target/release/injector" || true)
    [ -x "$INJECTOR" ] || INJECTOR=$(command -v injector) || die "there is no injector: run scripts/setup, or set INJECTOR"
  fi
}

# need PROGRAM PACKAGE
need() { command -v "$1" > /dev/null || die "there is no $1: install $2"; }

# inside SPACE CMD…
inside() {
  local space=$1
  shift
  nsenter --net="/run/netns/$space" "$@"
}

# Two hosts and a cable: SPACE has 10.66.0.1, the other one 10.66.0.2.
cable() {
  local space number=1
  remove_spaces
  SPACES=("$1" "$2")
  remove_spaces
  ip netns add "$1"
  ip netns add "$2"
  ip link add name eth0 netns "$1" type veth peer name eth0 netns "$2"
  for space in "$@"; do
    ip -n "$space" addr add "10.66.0.$number/24" dev eth0
    ip -n "$space" link set lo up
    ip -n "$space" link set eth0 up
    number=2
  done
}

remove_spaces() {
  local space pids
  for space in "${SPACES[@]}"; do
    [ -e "/run/netns/$space" ] || continue
    mapfile -t pids < <(ip netns pids "$space")
    [ "${#pids[@]}" = 0 ] || kill -9 "${pids[@]}" 2> /dev/null || true
    ip netns del "$space"
  done
}

# redis_server SPACE. Debian has one program for both, and calls it redis-server only in a package that starts one.
redis_server() {
  ln -sf "$(command -v redis-check-rdb)" "$WORK/redis-server"
  inside "$1" "$WORK/redis-server" --save '' --dir "$WORK" --protected-mode no --daemonize yes \
    --logfile "$WORK/redis.log" > /dev/null
}

# wait_for SECONDS WHAT CMD…: until it succeeds.
wait_for() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" > /dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || die "$what: waited in vain"
    sleep 0.05
  done
}

# apply SCENARIO [OPTION…]: starts it, and returns once its time has begun, which was at $STARTED.
apply() {
  local said=$WORK/started
  : > "$said"
  "$INJECTOR" apply "$@" --output json > "$said" &
  SCENARIO=$!
  until grep -q '"event":"started"' "$said"; do
    kill -0 "$SCENARIO" 2> /dev/null || die "the scenario failed"
    sleep 0.05
  done
  STARTED=$(date -d "$(sed -n 's/^{"time":"\([^"]*\)".*"event":"started".*/\1/p' "$said")" +%s.%N)
}

# Waits until the scenario ends.
finish() {
  local scenario=$SCENARIO
  SCENARIO=
  wait "$scenario" || die "the scenario failed"
}

# plot: draws $OUT/$NAME.svg; gnuplot's commands are the standard input.
plot() {
  { echo "set terminal svg size 900,500 background rgb 'white'; set datafile separator ','"
    echo "set output '$OUT/$NAME.svg'; set key outside; set grid"
    cat; } | gnuplot
  say "see $OUT/$NAME.csv and $OUT/$NAME.svg"
}

usage() {
  sed -n '2,/^[^#]/{ s/^# \{0,1\}//; t p; b; :p; p }' "$0"
  exit "$1"
}

# An experiment's own; what it made besides namespaces.
remove() { :; }

clean_up() {
  local status=$?
  trap - EXIT
  trap '' INT TERM
  # A background process of a script does not take Ctrl-C.
  if [ -n "$SCENARIO" ]; then
    kill "$SCENARIO" 2> /dev/null || true
    wait "$SCENARIO" || true
  fi
  remove
  remove_spaces
  [ -z "$WORK" ] || rm -rf "$WORK"
  exit "$status"
}

experiment() {
  while [ $# -gt 0 ]; do
    case $1 in
      --short) SHORT=yes ;;
      --out) OUT=${2:?--out DIR}; shift ;;
      --help) usage 0 ;;
      *) usage 2 >&2 ;;
    esac
    shift
  done
  [ "$(id -u)" = 0 ] || die "run this as root"
  find_injector
  need gnuplot gnuplot-nox
  need nsenter util-linux
  need ip iproute2
  mkdir -p "$OUT"
  WORK=$(mktemp -d)
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  measure
}
