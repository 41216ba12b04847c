#!/usr/bin/env bash
# vm-micro-image.sh STORE
# Builds the tests' small guest as the image STORE/micro, STORE being a cluster's vm-images: the
# distribution's kernel, BusyBox and nothing else, up in about five seconds without KVM. It takes
# from the seed what the agent does not take itself (name and network), starts the agent from the
# disk KRAGENT, goes down at the power button, and has root at the serial console.
# What is there already, built by this very script, stays.
set -euo pipefail
. "$(dirname -- "$0")/lib.sh"

[ $# = 1 ] || die "usage: vm-micro-image.sh STORE"
is_root || exec sudo "$TOP/scripts/vm-micro-image.sh" "$@"
mkdir -p "$1"
store=$(cd -- "$1" && pwd)
initrd_init=$TOP/crates/vm/src/image/build/files/init.sh
# Whatever the guest is made by: another one of it is another guest.
recipe=$(cat "$TOP/scripts/vm-micro-image.sh" "$initrd_init" | sha256sum | cut -d' ' -f1)
if grep -qs "\"recipe\": \"$recipe\"" "$store/micro/image.json"; then exit 0; fi

for program in qemu-img mke2fs depmod modprobe busybox apt-get; do
  have "$program" || die "$program is missing: run scripts/setup.sh --for test"
done
busybox=$(command -v busybox)
! readelf -l "$busybox" 2>/dev/null | grep -q INTERP || die "busybox is not static: run scripts/setup.sh --for test"

# Beside the result, so that it is there in one step.
work=$(mktemp -d "$store/.micro-XXXXXX")
trap 'rm -rf "$work"' EXIT

# The kernel's package is unpacked and not installed: it would want to boot this machine.
kernel_packages() {
  local ID='' ID_LIKE='' meta=linux-image-cloud-amd64
  . /etc/os-release
  case " $ID $ID_LIKE " in *" ubuntu "*) meta=linux-image-virtual ;; esac
  # Where Ubuntu's modules have a package of their own, that is named like the kernel's.
  apt-cache depends --important "$meta" | sed -nE 's/^ *Depends: (linux-image-[0-9].*)$/\1/p' | head -n1
}
kernel=$(kernel_packages)
[ -n "$kernel" ] || die "apt knows no kernel for virtual machines: run apt-get update"
mkdir "$work/deb" "$work/kernel"
(
  cd "$work/deb"
  apt-get -qq -o APT::Sandbox::User=root download "$kernel" >&2
  apt-get -qq -o APT::Sandbox::User=root download "${kernel/linux-image-/linux-modules-}" >/dev/null 2>&1 || true
)
for package in "$work"/deb/*.deb; do dpkg-deb -x "$package" "$work/kernel"; done
# Debian 13 has it below /usr only; depmod looks for /lib.
[ -e "$work/kernel/lib" ] || ln -s usr/lib "$work/kernel/lib"
release=$(basename "$(echo "$work"/kernel/boot/vmlinuz-*)")
release=${release#vmlinuz-}
depmod -b "$work/kernel" "$release"

# unpack MODULE TO: some distributions compress them.
unpack() {
  case $1 in
    *.xz) xz -dc "$1" ;;
    *.zst) zstd -qdc "$1" ;;
    *) cat "$1" ;;
  esac >"$2"
}

# All modules are loaded from the initrd: there are few, and the root needs none then.
initrd() {
  local root=$work/initrd module path file
  mkdir -p "$root"/{bin,dev,proc,sys,root,modules}
  cp "$busybox" "$root/bin/busybox"
  install -m 755 "$initrd_init" "$root/init"
  for module in virtio_pci virtio_blk ext4 virtio_net virtio_rng virtio_balloon vfat nls_cp437 nls_ascii button evdev pvpanic-pci; do
    # What is built in is no line.
    modprobe -d "$work/kernel" -S "$release" --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
  done | awk '!seen[$0]++' | while read -r path; do
    file=$(basename "$path")
    file=${file%.xz}
    file=${file%.zst}
    unpack "$path" "$root/modules/$file"
    printf '%s\n' "$file" >>"$root/modules/order"
  done
  (cd "$root" && find . | "$busybox" cpio -o -H newc 2>/dev/null) >"$work/initrd.img"
}

root_tree() {
  local root=$work/root command
  mkdir -p "$root"/{bin,sbin,etc/acpi/PWRF,root,proc,sys,dev,run,tmp,mnt,home,srv,usr,var/log,var/tmp}
  chmod 1777 "$root/tmp" "$root/var/tmp"
  chmod 700 "$root/root"
  ln -s ../bin "$root/usr/bin"
  ln -s ../sbin "$root/usr/sbin"
  cp "$busybox" "$root/bin/busybox"
  while read -r command; do
    [ "$command" = busybox ] || ln -s busybox "$root/bin/$command"
  done < <("$busybox" --list)
  [ -e "$root/bin/sh" ] || ln -s busybox "$root/bin/sh"
  ln -s ../bin/busybox "$root/sbin/init"
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
  printf 'root:*:19000::::::\n' >"$root/etc/shadow"
  chmod 600 "$root/etc/shadow"
  printf 'ID=kohakuriver-micro\nPRETTY_NAME="KohakuRiver test guest"\n' >"$root/etc/os-release"
  printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
  cat >"$root/etc/inittab" <<'X'
::sysinit:/sbin/boot
::respawn:/sbin/agent
ttyS0::respawn:/bin/getty -L -n -l /sbin/console 115200 ttyS0 vt220
::ctrlaltdel:/bin/reboot
X
  printf '#!/bin/sh\ncd\nexec sh -l\n' >"$root/sbin/console"
  # The disk is left clean, and nobody is waited for.
  printf '#!/bin/sh\nsync\necho u >/proc/sysrq-trigger\nexec poweroff -f\n' >"$root/etc/acpi/PWRF/00000080"
  cat >"$root/sbin/agent" <<'X'
#!/bin/sh
export PATH=/bin:/sbin
bin=/run/kohakuriver/bin
mkdir -p $bin
mountpoint -q $bin || mount -t vfat -o ro,umask=022 "$(findfs LABEL=KRAGENT)" $bin || exec sleep 1
exec $bin/kohakuriver agent --guest >/run/agent.log 2>&1
X
  # Reads what our own seed has, line by line, and nothing else that YAML allows.
  cat >"$root/sbin/boot" <<'X'
#!/bin/sh
export PATH=/bin:/sbin HOME=/root
mount -t proc proc /proc
mount -o remount,rw /
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
ip link set lo up
mount -t vfat -o ro "$(findfs LABEL=CIDATA)" /mnt || exit 0
name=$(sed -n 's/^local-hostname: *//p' /mnt/meta-data)
[ -z "$name" ] || { hostname "$name"; echo "$name" >/etc/hostname; echo "127.0.0.1 localhost $name" >/etc/hosts; }
eval "$(awk '
  /macaddress:/ { gsub(/.*macaddress: *"?|["}]/, ""); print "mac=" $0 }
  /nameservers:/ { dns = 1 }
  /addresses: *\[/ { gsub(/.*\[|\].*/, ""); gsub(/,/, " "); print (dns ? "servers" : "address") "=\"" $0 "\"" }
  /via:/ { gsub(/.*via: */, ""); gsub(/[},].*/, ""); print "gateway=" $0 }
' /mnt/network-config)"
umount /mnt
for link in /sys/class/net/*; do
  [ "$(cat $link/address)" = "$mac" ] || continue
  for one in $address; do ip addr add $one dev ${link##*/}; done
  ip link set ${link##*/} up
done
[ -z "$gateway" ] || ip route add default via $gateway
for server in $servers; do echo "nameserver $server"; done >/etc/resolv.conf
acpid -l /dev/null
X
  chmod 755 "$root"/sbin/{boot,agent,console} "$root/etc/acpi/PWRF/00000080"
}

initrd
root_tree
image=$work/image
mkdir "$image"
truncate -s 512M "$work/disk.raw"
mke2fs -q -F -t ext4 -J size=4 -m 0 -E lazy_itable_init=0 -d "$work/root" "$work/disk.raw"
qemu-img convert -f raw -O qcow2 "$work/disk.raw" "$image/disk.qcow2"
cp "$work/kernel/boot/vmlinuz-$release" "$image/vmlinuz"
cp "$work/initrd.img" "$image/initrd"
cat >"$image/image.json" <<X
{
  "sha256": "$(sha256sum "$image/disk.qcow2" | cut -d' ' -f1)",
  "disk_bytes": $(stat -c %s "$image/disk.qcow2"),
  "virtual_bytes": $((512 << 20)),
  "firmware": "bios",
  "kernel": {
    "cmdline": "root=/dev/vda ro console=ttyS0 quiet no_timer_check tsc=reliable cryptomgr.notests nokaslr mitigations=off rcupdate.rcu_expedited=1",
    "when": "always"
  },
  "agent": true,
  "source": "BusyBox and $kernel",
  "made_ms": $(date +%s%3N),
  "recipe": "$recipe"
}
X
chmod 444 "$image"/*
chmod 755 "$image"
rm -rf "$store/micro"
mv -T "$image" "$store/micro"
say "made $store/micro ($(du -sh "$store/micro" | cut -f1))"
