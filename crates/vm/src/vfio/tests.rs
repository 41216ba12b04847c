//! Everything but the real kernel: that is `scripts/test-vfio.sh`.

use std::collections::BTreeSet;

use kohakuriver_model::InstanceId;

use super::PciAddress;

mod crash;
mod machine;
mod refusals;
mod take;

fn at(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn set(addresses: &[&str]) -> BTreeSet<PciAddress> {
    addresses.iter().map(|text| at(text)).collect()
}

fn task(id: u64) -> InstanceId {
    InstanceId::from_u64(id)
}
