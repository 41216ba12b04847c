#!/bin/busybox sh
# Mounts the root file system and goes there: what the distribution's own initrd does, without
# what a machine with one virtio disk does not need.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
# The kernel looked for it before it was there.
exec </dev/console >/dev/console 2>&1
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
for module in $($b cat /modules/order); do $b insmod /modules/$module 2>/dev/null; done
root=
for word in $($b cat /proc/cmdline); do
  case $word in root=*) root=${word#root=} ;; esac
done
tries=0
while [ $tries -lt 200 ]; do
  case $root in
    *=*) device=$($b findfs "$root" 2>/dev/null) ;;
    *) device=$root ;;
  esac
  [ -n "$device" ] && $b mount -t ext4 -o ro "$device" /root 2>/dev/null && break
  tries=$((tries + 1))
  $b usleep 50000
done
if [ ! -d /root/etc ]; then
  echo "there is no root file system $root"
  exec $b sh
fi
$b umount /sys
$b umount /proc
$b mount --move /dev /root/dev
exec $b switch_root /root /sbin/init
