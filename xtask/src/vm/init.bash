#!/bin/bash
# The first process of the guest: makes a system of it, does the jobs, and tells by lines with "@@vm" how it went.
# What it prints goes to the second serial port; the first is the kernel's.
export PATH=/usr/sbin:/usr/bin:/opt/busybox HOME=/root TERM=dumb LANG=C.UTF-8 RUST_BACKTRACE=0

mount -t proc proc /proc
busybox=$(type -P busybox)
"$busybox" mkdir -p /opt/busybox
"$busybox" --install -s /opt/busybox
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
ln -s /proc/self/fd /dev/fd
for n in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${n%:*}" "/dev/${n#*:}"; done
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for folder in /dev/shm /run /tmp; do mount -t tmpfs tmpfs "$folder"; done
mkdir -p /run/lock /var/run /var/lib
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
# Where the kernel tells of its security modules.
mount -t securityfs securityfs /sys/kernel/security

stty -F /dev/ttyS1 raw -echo
# A pipe, so that no program takes it for a terminal.
exec </dev/null > >(exec cat >/dev/ttyS1) 2>&1

say() { echo "@@vm $*"; }

for module in $(cat /vm/modules); do
  insmod "/vm/$module" || say "problem module $module"
done
ip link set lo up
set -a
. /vm/environment
set +a
read -r uptime _ </proc/uptime
say "ready $uptime $(uname -r)"

job() {
  local name=$1 start=$SECONDS
  shift
  say "start $name"
  # One that hangs must not take the others with it. In a session of its own, so that this process, the parent of all that
  # are left alone, is not in it: else one that ends hangs its group up while another one is stopped (kill_orphaned_pgrp).
  setsid --wait timeout --kill-after 5 "$timeout" "$@"
  say "end $name $? $((SECONDS - start))"
}
. /vm/jobs

say done
sleep 30
reboot -f
