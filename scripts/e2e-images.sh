#!/usr/bin/env bash
# e2e-images.sh [--with-debian] [--force]
# Makes the Docker images the tests use, out of the distribution's packages and no registry:
#   kohakuriver-test/busybox:latest  a shell and the usual commands, about 2 MB
#   kohakuriver-test/scratch:latest  one static program, /hello, and no shell at all, below 1 MB
#   kohakuriver-test/debian:latest   with --with-debian: a small Debian or Ubuntu with sshd and rsync
# What is there already stays, unless --force is given or a package is missing.
set -euo pipefail
. "$(dirname -- "$0")/lib.sh"
. "$(dirname -- "$0")/base.sh"

with_debian=0
force=0
for argument; do
  case $argument in
    --with-debian) with_debian=1 ;;
    --force) force=1 ;;
    *) die "usage: e2e-images.sh [--with-debian] [--force]" ;;
  esac
done

docker_answers || is_root || exec sudo "$TOP/scripts/e2e-images.sh" "$@"
docker_answers || die "no Docker engine answers: run scripts/docker.sh start"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

wanted() {
  [ "$force" = 1 ] || ! docker_api GET "/images/kohakuriver-test/$1:latest/json" >/dev/null 2>&1
}

debian_packages=openssh-server,openssh-client,procps,iproute2,rsync
wanted_debian() {
  wanted debian ||
    ! docker_api GET "/images/kohakuriver-test/debian:latest/json" | grep -q "\"packages\":\"$debian_packages\""
}

url_encode() {
  local text=$1 i character
  for ((i = 0; i < ${#text}; i++)); do
    character=${text:i:1}
    case $character in
      [a-zA-Z0-9._~/-]) printf '%s' "$character" ;;
      *) printf '%%%02X' "'$character" ;;
    esac
  done
}

# import NAME TAR CHANGE: a tar becomes an image, CHANGE is a line as in a Dockerfile.
import() {
  local name=$1 tar=$2 change=$3 answer
  answer=$(docker_api POST "/images/create?fromSrc=-&repo=kohakuriver-test/$name&tag=latest&changes=$(url_encode "$change")" \
    -H 'Content-Type: application/x-tar' -T "$tar")
  case $answer in
    *'"error"'*) die "the engine refused kohakuriver-test/$name: $answer" ;;
  esac
  say "made kohakuriver-test/$name:latest ($(du -h "$tar" | cut -f1))"
}

# pack FOLDER TAR: everything belongs to root, whoever made it.
pack() { tar --owner=0 --group=0 --numeric-owner -C "$1" -cf "$2" .; }

busybox_image() {
  local root=$work/busybox command
  mkdir -p "$root"/{bin,etc,root,tmp,proc,sys,dev,var/tmp}
  ln -s bin "$root/sbin"
  mkdir "$root/usr" && ln -s ../bin "$root/usr/bin" && ln -s ../bin "$root/usr/sbin"
  chmod 1777 "$root/tmp" "$root/var/tmp"
  chmod 700 "$root/root"
  cp "$busybox" "$root/bin/busybox"
  while read -r command; do
    [ "$command" = busybox ] || ln -s busybox "$root/bin/$command"
  done < <("$busybox" --list)
  # The distribution's build may leave the shell out of the list.
  [ -e "$root/bin/sh" ] || ln -s busybox "$root/bin/sh"
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
  pack "$root" "$work/busybox.tar"
  import busybox "$work/busybox.tar" 'CMD ["/bin/sh"]'
}

# A program of our own, since BusyBox would bring a shell: `/hello [SECONDS [STATUS]]` greets,
# waits that long and ends with that status.
scratch_image() {
  have cc || die "a C compiler is missing: run scripts/setup.sh"
  mkdir -p "$work/scratch"
  cc -static -Os -s -o "$work/scratch/hello" -x c - <<'C'
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int count, char **words) {
  puts("hello");
  fflush(stdout);
  if (count > 1) sleep((unsigned)atoi(words[1]));
  return count > 2 ? atoi(words[2]) : 0;
}
C
  pack "$work/scratch" "$work/scratch.tar"
  import scratch "$work/scratch.tar" 'ENTRYPOINT ["/hello"]'
}

debian_image() {
  is_root || die "building a Debian image needs root"
  have mmdebstrap || die "mmdebstrap is missing: run scripts/setup.sh"
  base_tar "$work/debian.tar" "$debian_packages"
  import debian "$work/debian.tar" "CMD [\"/bin/bash\"]
LABEL packages=\"$debian_packages\""
}

find_busybox() {
  local candidate
  # The plain package busybox is linked dynamically and would not run in an empty image.
  for candidate in /bin/busybox /usr/bin/busybox; do
    if [ -x "$candidate" ] && ! readelf -l "$candidate" 2>/dev/null | grep -q INTERP; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  die "a static busybox is missing: run scripts/setup.sh --for test"
}
busybox=$(find_busybox)

if wanted busybox; then busybox_image; fi
if wanted scratch; then scratch_image; fi
if [ "$with_debian" = 1 ] && wanted_debian; then debian_image; fi
