#!/usr/bin/env bash
# Finds what this machine lacks for running (--for up), testing (--for test) or measuring
# (--for bench) KohakuRiver and installs it from the distribution's own packages. Says what and why first. Does nothing, at
# once, when everything is there.
set -euo pipefail
. "$(dirname -- "$0")/lib.sh"
. "$(dirname -- "$0")/base.sh"

packages=()
reasons=()
need() {
  packages+=("$1")
  reasons+=("$(printf '  %-16s %s' "$1" "$2")")
}

find_missing() {
  # A static executable needs libc.a and its headers, not only a compiler.
  have cc || need gcc "builds the C parts (SQLite, cryptography) and links"
  [ -e /usr/include/stdio.h ] && { ! have cc || [ "$(cc -print-file-name=libc.a)" != libc.a ]; } ||
    need libc6-dev "C headers and the static C library"
  have curl || need curl "talks to the Docker engine and to the API"
  [ -e /etc/ssl/certs/ca-certificates.crt ] || need ca-certificates "checks who answers over HTTPS"
  # Whoever answers on the socket is an engine, however it got there.
  have dockerd || docker_answers || need docker.io "Docker engine: runs the instances"
  have ssh && have scp && have ssh-keygen || need openssh-client "ssh, scp, ssh-keygen"
  have ip || need iproute2 "makes the bridges that VPSes are on"
  have nft || need nftables "keeps VPSes from one another and from this machine"
  have nsenter || need util-linux "looks into the networks of containers"
  have mmdebstrap || need mmdebstrap "builds the base environment of a VPS, and VM images"
  [ "$(uname -m)" != x86_64 ] || find_missing_for_machines
  [ "$purpose" != up ] || return 0
  is_static_busybox || need busybox-static "the tests' smallest image is made of it"
  have sshd || need openssh-server "sshd: the tests compare with it (no service is started)"
  have rsync || need rsync "the tests copy through SSH with it"
  have depmod || need kmod "the tests' smallest VM image loads the kernel's modules with it"
  [ "$purpose" = test ] || have socat || need socat "the measurements compare forwards with it"
}

# Virtual machines, and `qemu image create`.
find_missing_for_machines() {
  have qemu-system-x86_64 || need qemu-system-x86 "runs virtual machines"
  have qemu-img || need qemu-utils "makes the disks of virtual machines"
  [ -e /usr/share/OVMF/OVMF_CODE_4M.fd ] || need ovmf "UEFI firmware, for VM images that want it"
  have mke2fs || need e2fsprogs "makes the file system of a VM image"
  have sfdisk || need fdisk "makes the partitions of a VM image"
  have grub-mkimage || need grub-common "makes the boot loader of a VM image"
  [ -e /usr/lib/grub/i386-pc/boot.img ] || need grub-pc-bin "that boot loader, for BIOSes"
  [ -e /usr/lib/grub/x86_64-efi/kernel.img ] || need grub-efi-amd64-bin "that boot loader, for UEFI"
}

# The package busybox has the same name for its command, but it is linked dynamically.
is_static_busybox() { have busybox && [ ! -e /usr/share/doc/busybox/copyright ]; }

require_cargo() {
  add_cargo_to_path
  have cargo && return
  say "error: cargo is missing. Install Rust for your user, then try again:"
  say "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
  exit 1
}

is_debian_like() {
  have apt-get || return 1
  local ID='' ID_LIKE=''
  . /etc/os-release
  case " $ID $ID_LIKE " in *" debian "* | *" ubuntu "*) ;; *) return 1 ;; esac
}

# Packages may want to start services while they are installed. Docker is started afterwards,
# by docker.sh; sshd never. An administrator's own policy is left alone.
policy=/usr/sbin/policy-rc.d
policy_mark='# kohakuriver: only while setup.sh installs packages'
forbid_service_starts() {
  allow_service_starts # what a killed run left behind
  [ -e "$policy" ] && return
  trap allow_service_starts EXIT
  printf '#!/bin/sh\n%s\nexit 101\n' "$policy_mark" | as_root tee "$policy" >/dev/null
  as_root chmod 755 "$policy"
}
allow_service_starts() {
  if grep -qsxF "$policy_mark" "$policy"; then as_root rm -f "$policy"; fi
}

# The package enables the SSH service for the next boot: nobody asked for that.
disable_ssh_service() {
  if [ -d /run/systemd/system ]; then
    as_root systemctl disable ssh.service ssh.socket >/dev/null 2>&1 || true
  elif have update-rc.d; then
    as_root update-rc.d ssh disable >/dev/null 2>&1 || true
  fi
}

apt() {
  # Another apt may be at work: wait for it rather than fail.
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 \
    "$@" </dev/null >&2
}
install_packages() {
  local wants_sshd=0 package
  for package in "${packages[@]}"; do
    if [ "$package" = openssh-server ]; then wants_sshd=1; fi
  done
  # `update` does not wait for a lock by itself.
  apt update || { sleep 20 && apt update; } || say "apt-get update failed: trying with what is known"
  forbid_service_starts
  # Nobody asked for anything to be removed, which is how apt would make parts fit.
  local install=(install --yes --no-install-recommends --no-remove)
  if apt --simulate "${install[@]}" "${packages[@]}" >/dev/null 2>&1; then
    apt "${install[@]}" "${packages[@]}" || die "apt-get could not install: ${packages[*]}"
  else
    install_with_backports "${install[@]}"
  fi
  [ "$wants_sshd" = 0 ] || disable_ssh_service
}

# Where a part of QEMU is there from the backports suite already, the parts of the main suite do
# not go with it: then all of QEMU is taken from there.
install_with_backports() {
  local others=() qemu=() package VERSION_CODENAME=''
  for package in "${packages[@]}"; do
    case $package in qemu-* | ovmf) qemu+=("$package") ;; *) others+=("$package") ;; esac
  done
  . /etc/os-release
  [ "${#qemu[@]}" -gt 0 ] && add_backports "$VERSION_CODENAME" ||
    die "apt-get cannot install: ${packages[*]}"
  if [ "${#others[@]}" -gt 0 ]; then
    apt "$@" "${others[@]}" || die "apt-get could not install: ${others[*]}"
  fi
  apt "$@" -t "$VERSION_CODENAME-backports" "${qemu[@]}" ||
    die "apt-get could not install: ${qemu[*]}"
}

# add_backports CODENAME: from the mirror that the release itself comes from.
add_backports() {
  local suite=$1-backports file=/etc/apt/sources.list.d/kohakuriver-backports.list line
  if ! apt-cache policy | grep -qE "[an]=$suite(,|\$)"; then
    line=$(distribution_sources "$1" | sed -nE "s#^(deb .*) $1 (.*)\$#\1 $suite \2#p" | head -n1)
    [ -n "$line" ] || return 1
    say "Adding the distribution's suite $suite ($file):"
    say "  the QEMU that is partly here is from there"
    printf '%s\n' "$line" | as_root tee "$file" >/dev/null
  fi
  apt update
}

purpose=up
case "${1:-} ${2:-}" in
  " ") ;;
  "--for up" | "--for test" | "--for bench") purpose=$2 ;;
  *) die "usage: setup.sh [--for up|test|bench]" ;;
esac

require_cargo
find_missing
[ "${#packages[@]}" -gt 0 ] || exit 0

if ! is_debian_like; then
  say "This machine lacks (names of Debian's packages; yours may differ):"
  printf '%s\n' "${reasons[@]}" >&2
  die "installing by itself works on Debian and Ubuntu: please install these, then try again"
fi
say "Installing from the distribution's packages:"
printf '%s\n' "${reasons[@]}" >&2
install_packages
