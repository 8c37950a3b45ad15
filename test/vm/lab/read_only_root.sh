#!/bin/sh
# Serves this machine's root to the guest, read-only whatever the guest does: `read_only_root.sh DIRECTORY VIRTIOFSD SOCKET`.
# To be run in a mount namespace of its own. The root and every other file system with files of this machine are bound to DIRECTORY first.
set -eu
mount --bind / "$1"
mount -o remount,bind,ro "$1"
while read -r line; do
  point=$(printf '%b' "$(printf '%s' "$line" | cut -d' ' -f5)")
  type=${line#* - }
  type=${type%% *}
  case $point in / | /proc* | /sys* | /dev* | /run* | "$1"*) continue ;; esac
  case $type in ext[234] | xfs | btrfs | f2fs | overlay | tmpfs | 9p | virtiofs | fuse* | nfs*) ;; *) continue ;; esac
  [ -d "$point" ] && [ -d "$1$point" ] || continue
  mount --bind "$point" "$1$point" && mount -o remount,bind,ro "$1$point" || true
done < /proc/self/mountinfo
exec setpriv --pdeathsig KILL "$2" --socket-path="$3" -o source="$1" -o cache=always -o sandbox=chroot -f
