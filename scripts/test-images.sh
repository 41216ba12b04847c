#!/usr/bin/env bash
# test-images.sh
# Real distributions as virtual machines: 'qemu image create' builds one, which then boots in each
# of its three ways, and one that nobody prepared for us is imported. Another has a Docker engine and
# becomes a node, whose VPSes can be privileged whatever the engine of this machine allows. Needs
# root and the distribution's mirror; takes half an hour where there is no KVM.
set -euo pipefail
. "$(dirname -- "$0")/lib.sh"
cd "$TOP"
[ $# = 0 ] || die "usage: test-images.sh"
is_root || exec sudo -E "$TOP/scripts/test-images.sh"
scripts/setup.sh --for test
started=$(scripts/docker.sh start)
finish() { if [ "$started" = started ]; then scripts/docker.sh stop; fi; }
trap finish EXIT
scripts/e2e-images.sh
engine=docker.io,nftables
# Debian 13 packs the command line apart.
if [ -n "$(apt-cache show docker-cli 2>/dev/null)" ]; then engine+=,docker-cli; fi
scripts/vm-stock-image.sh "$(target_dir)/vm-stock/disk.qcow2"
scripts/vm-stock-image.sh "$(target_dir)/vm-stock/engine.qcow2" "$engine"
add_cargo_to_path
as_invoking_user cargo build --workspace --all-targets --locked
KOHAKURIVER_BIN=$(target_dir)/$(host_triple)/debug/kohakuriver
export KOHAKURIVER_BIN
cargo test --workspace --locked --test it -- --ignored --nocapture distributions
