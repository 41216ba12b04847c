//! What connects machines: addresses, the bridge and its TAPs, the firewall's table.
//!
//! ```text
//!  guest A --TAP--+                          +-- uplink (masqueraded)
//!                 +-- kohaku-br0 (gateway) --+
//!  guest B --TAP--+   isolated ports         +-- node: the runner dials the agents' ports;
//!                                                guests get answers, ping, the nameservers' port
//! ```
//!
//! A guest reaches what is outside, and nothing of this machine: not its services, not its
//! containers, not its other guests, not the cloud's metadata. It can send from its own addresses
//! alone, and what goes to it arrives nowhere else.
//!
//! The kernel holds the whole state, so there is nothing to lose: a TAP's name is its instance's
//! id, its alias says whose it is and has the guest's address, and the guest's MAC is made of the
//! address. Every change reads what is there and brings all of it to what it should be:
//!
//! ```text
//!  (nothing) --attach: bridge, rules--> bridge with guests --attach, detach--> ...
//!      ^                                   | last detach, or sweep without living guests
//!      +-----------------------------------+
//! ```
//!
//! Containers are on a bridge of their engine's; [`containers`] puts the same border around it.
//!
//! Where the runner is not root, [`user`] gives each machine QEMU's own network.

mod bridge;
mod changes;
mod command;
mod containers;
mod firewall;
mod kernel;
mod mend;
mod names;
mod nic;
mod port;
mod prefix;
mod resolver;
mod rules;
mod subnet;
mod tap;
pub mod user;

pub use bridge::{Network, NetworkConfig};
pub use changes::DeviceChanges;
pub use command::CommandError;
pub use containers::{BorderConfig, ContainerBorder, Plug};
pub use mend::Plugged;
pub use names::{BridgeName, Owner, ParseBridgeNameError, tap_name, tap_owner};
pub use nic::Nic;
pub use prefix::{ParsePrefixError, Prefix};
pub use resolver::nameservers;
pub use subnet::{DEFAULT_SUBNET, Mac, ParseMacError, ParseSubnetError, Subnet};
pub use tap::{TAP_FD, inherit_tap};

use std::net::Ipv4Addr;

use kohakuriver_model::InstanceId;

/// Why the network of machines could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(
        "{bridge} exists and {what}; remove it (ip link del {bridge}), or give this runner another bridge name"
    )]
    BridgeTaken { bridge: BridgeName, what: String },
    #[error(
        "the machines' subnet {subnet} overlaps {other} of this node; give this runner another subnet"
    )]
    SubnetTaken { subnet: Subnet, other: String },
    #[error(
        "{bridge} has {has}, not {subnet}, and machines run on it; stop them first, or go back to the old subnet"
    )]
    SubnetInUse { bridge: BridgeName, has: String, subnet: Subnet },
    #[error("{address} is no address for a guest in {subnet}")]
    BadAddress { address: Ipv4Addr, subnet: Subnet },
    #[error("{address} belongs to the machine {id}, which runs")]
    AddressTaken { address: Ipv4Addr, id: InstanceId },
    #[error(
        "a network device {name} exists that is not this runner's; remove it (ip link del {name})"
    )]
    DeviceTaken { name: String },
    #[error("there is no bridge {bridge} on this machine; is the Docker engine on another one?")]
    BridgeMissing { bridge: BridgeName },
    #[error("the container's end of the bridge {bridge} is not found")]
    PortMissing { bridge: BridgeName },
    #[error("cannot {what}")]
    Kernel {
        what: &'static str,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("the container's network cannot be entered")]
    Inside {
        #[source]
        source: std::io::Error,
    },
    #[error("the machine {id} cannot be plugged in again while it runs; restart it")]
    NoEnd {
        id: InstanceId,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot write {path}; is the runner root?")]
    Setting {
        path: String,
        #[source]
        source: std::io::Error,
    },
}
