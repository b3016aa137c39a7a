#!/bin/bash
# Measures ublk servers in a virtual machine, in turns, with fio as the client. Writes one fio report
# for each sample into the current folder, named SERVER.ROW.RUN.json, and SERVER.calls: the system
# calls of ours for how many requests.
#
#   ublk_guest.sh UBIBLK RUNS SECONDS
#
# ublk-minimal, the server that we are compared with, is in the current folder. /dev/vda is a disk for a
# file.
set -euo pipefail
ubiblk=$1 runs=$2 seconds=$3

declare -A rows=(
  [randread-4K-d32]='--rw=randread --bs=4k --iodepth=32'
  [randwrite-4K-d32]='--rw=randwrite --bs=4k --iodepth=32'
  [read-1M]='--rw=read --bs=1M --iodepth=4'
  [write-1M]='--rw=write --bs=1M --iodepth=4'
)
bytes=$((256 << 20))

modprobe loop
mkfs.ext4 -q /dev/vda
mkdir -p /tmp/disk
mount /dev/vda /tmp/disk
for name in ours theirs; do
  head -c $bytes /dev/urandom > /tmp/disk/$name.raw
done
sync
printf 'path: /tmp/disk/ours.raw\nqueue_size: 64\n' > /tmp/file.yaml
printf 'queue_size: 64\npath: none\n' > /tmp/null.yaml

# Servers print the path of their device when it can be used.
serve() {
  case $1 in
    ram) exec ./ublk-minimal $((bytes >> 20)) 64 ;;
    minimal) exec ./ublk-minimal /tmp/disk/theirs.raw 64 ;;
    null) exec "$ubiblk" serve ublk --config /tmp/null.yaml --null $((bytes >> 20))M ;;
    file) exec "$ubiblk" serve ublk --config /tmp/file.yaml ;;
  esac
}

start() {
  if [[ $1 == loop ]]; then
    device=$(losetup -f --show --direct-io=on /tmp/disk/theirs.raw)
    return
  fi
  rm -f /tmp/path
  mkfifo /tmp/path
  serve "$1" > /tmp/path 2> "/tmp/$1.log" &
  server=$!
  read -r device < /tmp/path || { cat "/tmp/$1.log" >&2; exit 1; }
}

stop() {
  if [[ $1 == loop ]]; then
    losetup -d "$device"
    return
  fi
  kill "$server"
  wait "$server"
}

measure() { # DEVICE ROW OUTPUT SECONDS
  # shellcheck disable=SC2086  # a row is several options
  fio --name=bench --filename="$1" --direct=1 --ioengine=io_uring ${rows[$2]} --size=$bytes \
    --runtime="$4" --time_based --output-format=json --output="$3"
}

tracing=/sys/kernel/tracing
# System calls of the server's threads while fio runs, by the kernel's own count.
count_calls() { # SERVER
  local trigger=$tracing/events/raw_syscalls/sys_enter/trigger
  local hist=$tracing/events/raw_syscalls/sys_enter/hist
  echo 'hist:keys=common_pid:size=4096' > "$trigger"
  measure "$device" randread-4K-d32 "$1.calls.json" "$seconds"
  local calls=0 task
  for task in /proc/"$server"/task/*; do
    calls=$((calls + $(sed -n "s/.*common_pid: *${task##*/} .*hitcount: *\([0-9]*\).*/\1/p" "$hist" | head -n 1 || true) + 0))
  done
  echo '!hist:keys=common_pid:size=4096' > "$trigger"
  echo "$calls" > "$1.calls"
}

for ((run = 0; run < runs; run++)); do
  for name in ram null loop file minimal; do
    start "$name"
    # Compilers at run time are slow on an emulated processor.
    measure "$device" randread-4K-d32 warm.json 10
    for row in "${!rows[@]}"; do
      measure "$device" "$row" "$name.$row.$run.json" "$seconds"
    done
    if [[ $run == 0 && ($name == null || $name == file) ]]; then count_calls "$name"; fi
    stop "$name"
  done
done
