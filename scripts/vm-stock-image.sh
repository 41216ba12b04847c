#!/usr/bin/env bash
# vm-stock-image.sh DISK [PACKAGE,PACKAGE,...]
# Builds DISK, a qcow2 file, as distributions publish them for clouds: this machine's release from
# its packages, with cloud-init, netplan and a boot loader as their maintainers set them up, these
# packages besides, and nothing of ours in it. 'qemu image import' must make do with it. What is
# there already stays.
set -euo pipefail
. "$(dirname -- "$0")/lib.sh"
. "$(dirname -- "$0")/base.sh"

[ $# = 1 ] || [ $# = 2 ] || die "usage: vm-stock-image.sh DISK [PACKAGE,PACKAGE,...]"
is_root || exec sudo -E "$TOP/scripts/vm-stock-image.sh" "$@"
disk=$1
[ ! -e "$disk" ] || exit 0
for program in mmdebstrap mke2fs sfdisk grub-mkimage qemu-img; do
  have "$program" || die "$program is missing: run scripts/setup.sh --for test"
done
boot_code=/usr/lib/grub/i386-pc/boot.img
[ -e "$boot_code" ] || die "$boot_code is missing: run scripts/setup.sh --for test"
mkdir -p "$(dirname -- "$disk")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

ID='' VERSION_CODENAME=''
. /etc/os-release
kernel=linux-image-cloud-amd64
if [ "$ID" = ubuntu ]; then kernel=linux-image-virtual; fi
sources=$(distribution_sources "$VERSION_CODENAME")
from=()
if [ -n "$sources" ]; then from=(-); fi
mmdebstrap --quiet --mode=root --variant=important --format=directory \
  --include="systemd-sysv,dbus,udev,initramfs-tools,$kernel,openssh-server,cloud-init,cloud-guest-utils,netplan.io,e2fsprogs,fdisk,sudo,apparmor,locales${2:+,$2}" \
  --aptopt='APT::Install-Recommends "false"' \
  --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*; : >"$1/etc/machine-id"' \
  "$VERSION_CODENAME" "$work/tree" "${from[@]}" <<<"$sources" >&2

# As those who publish images do: nobody generated another.
cat >"$work/tree/etc/cloud/cloud.cfg.d/01_locale.cfg" <<<'locale: C.UTF-8'
cat >"$work/tree/etc/fstab" <<<'LABEL=cloudimg-rootfs / ext4 rw,discard,errors=remount-ro 0 1'
mkdir -p "$work/tree/boot/grub"
cat >"$work/tree/boot/grub/grub.cfg" <<'END'
search --no-floppy --label --set=root cloudimg-rootfs
linux /vmlinuz root=LABEL=cloudimg-rootfs ro console=tty0 console=ttyS0,115200
initrd /initrd.img
boot
END
# Ubuntu keeps the links in /boot.
for link in vmlinuz initrd.img; do
  [ -e "$work/tree/$link" ] || ln -s "boot/$link" "$work/tree/$link"
done

start=2048 bytes=$((3 << 30))
truncate -s "$bytes" "$work/disk.raw"
sfdisk --quiet "$work/disk.raw" <<<"label: dos
start=$start, type=83, bootable"
mke2fs -q -F -t ext4 -L cloudimg-rootfs -E "offset=$((start * 512))" -d "$work/tree" "$work/disk.raw" \
  "$(((bytes - start * 512) / 1024))k"
grub-mkimage -O i386-pc -o "$work/core.img" -p '(hd0,msdos1)/boot/grub' \
  biosdisk part_msdos ext2 search search_label normal configfile linux
[ "$(stat -c %s "$work/core.img")" -lt $(((start - 1) * 512)) ] || die "GRUB does not fit before the partition"
dd if="$boot_code" of="$work/disk.raw" bs=440 count=1 conv=notrunc status=none
dd if="$work/core.img" of="$work/disk.raw" bs=512 seek=1 conv=notrunc status=none
qemu-img convert -q -O qcow2 "$work/disk.raw" "$disk.new"
mv "$disk.new" "$disk"
