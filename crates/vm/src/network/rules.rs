//! The firewall's rules, as one script that is applied whole or not at all.
//!
//! Two tables carry the name of the machines' bridge, one that of the containers'. That of the family `bridge` sees every frame as it comes
//! from a guest and lets through what the guest may send: IPv4 and ARP from its own addresses.
//! That of `inet` says where it may go. Both are made anew at every change: what somebody flushed
//! or edited is right again afterwards, and no packet passes between the old rules and the new.

use std::fmt::Write;
use std::net::Ipv4Addr;

use super::kernel::Guest;
use super::{BridgeName, Mac, NetworkConfig, Prefix, Subnet};

/// Addresses at which clouds tell machines their secrets.
const METADATA: &str = "169.254.0.0/16, 100.100.100.200, 168.63.129.16";

/// The script that makes the rules be those of `guests`.
pub(super) fn apply<'a>(
    config: &NetworkConfig,
    guests: &[Guest],
    uplinks: impl Iterator<Item = &'a String>,
) -> String {
    let mut script = remove(&config.bridge);
    script.push_str(&sources(&config.bridge, guests));
    let border = Border {
        bridge: &config.bridge,
        subnet: config.subnet,
        gateway: config.subnet.gateway(),
        nameservers: &config.nameservers,
        denied: &[],
        inside: Inside::Machines,
    };
    script.push_str(&border.table(uplinks));
    script
}

/// The script after which there are none.
pub(super) fn remove(bridge: &BridgeName) -> String {
    let table = bridge.table();
    // A table that is added first can be deleted whether it was there or not.
    ["bridge", "inet"]
        .map(|family| format!("add table {family} {table}\ndelete table {family} {table}\n"))
        .concat()
}

fn sources(bridge: &BridgeName, guests: &[Guest]) -> String {
    let (mut taps, mut own) = (Vec::new(), Vec::new());
    for Guest { tap, address, .. } in guests {
        taps.push(format!("\"{tap}\""));
        own.push(format!("\"{tap}\" . {} . {address}", Mac::of(*address)));
    }
    let elements = |all: &[String]| match all {
        [] => String::new(),
        all => format!("elements = {{ {} }}", all.join(", ")),
    };
    format!(
        r#"table bridge {table} {{
  set taps {{ type ifname; {taps} }}
  set own {{ type ifname . ether_addr . ipv4_addr; {own} }}
  chain from_guest {{
    type filter hook prerouting priority -300; policy accept;
    iifname != @taps accept
    ether type ip iifname . ether saddr . ip saddr @own accept
    ether type arp iifname . ether saddr . arp saddr ip @own iifname . arp saddr ether . arp saddr ip @own accept
    drop
  }}
}}
"#,
        table = bridge.table(),
        taps = elements(&taps),
        own = elements(&own),
    )
}

/// Who is on a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inside {
    /// Machines: what they send was looked at as frames, and nobody else masquerades it.
    Machines,
    /// Containers, whose engine masquerades.
    Containers,
}

/// Where those on a bridge may send to.
#[derive(Debug)]
pub(super) struct Border<'a> {
    pub bridge: &'a BridgeName,
    pub subnet: Subnet,
    pub gateway: Ipv4Addr,
    pub nameservers: &'a [Ipv4Addr],
    pub denied: &'a [Prefix],
    pub inside: Inside,
}

impl Border<'_> {
    /// The script that makes the rules anew, where there is no table of frames beside them.
    pub fn apply<'u>(&self, uplinks: impl Iterator<Item = &'u String>) -> String {
        let table = self.bridge.table();
        format!("add table inet {table}\ndelete table inet {table}\n{}", self.table(uplinks))
    }

    fn table<'u>(&self, uplinks: impl Iterator<Item = &'u String>) -> String {
        let Border { bridge, subnet, gateway, .. } = self;
        let mut dns = String::new();
        if !self.nameservers.is_empty() {
            let servers = joined(self.nameservers.iter());
            let _ = write!(
                dns,
                "ip daddr {{ {servers} }} meta l4proto {{ tcp, udp }} th dport 53 accept"
            );
        }
        // Bridges of this machine have containers and other machines behind them, but for one that
        // its own way out leads through.
        let uplinks: Vec<String> = uplinks
            .filter(|name| *name != bridge.as_str())
            .map(|name| format!("\"{name}\""))
            .collect();
        let not_uplink = match uplinks.as_slice() {
            [] => String::new(),
            uplinks => format!("oifname != {{ {} }} ", uplinks.join(", ")),
        };
        let denied = match self.denied {
            [] => String::new(),
            denied => format!("ip daddr {{ {} }} drop", joined(denied.iter())),
        };
        let (own, masquerade) = match self.inside {
            Inside::Machines => {
                (String::new(), format!("ip saddr {subnet} oifname != \"{bridge}\" masquerade"))
            }
            Inside::Containers => {
                (format!("meta nfproto ipv6 drop\n    ip saddr != {subnet} drop"), String::new())
            }
        };
        format!(
            r#"table inet {table} {{
  set metadata {{ type ipv4_addr; flags interval; elements = {{ {METADATA} }} }}
  chain input {{
    type filter hook input priority filter - 5; policy accept;
    iifname "{bridge}" goto to_node
  }}
  chain to_node {{
    {own}
    ct state established accept
    ct state related meta l4proto icmp accept
    icmp type echo-request ip daddr {gateway} accept
    {dns}
    drop
  }}
  chain forward {{
    type filter hook forward priority filter - 5; policy accept;
    iifname "{bridge}" goto outward
    oifname "{bridge}" goto inward
  }}
  chain outward {{
    {own}
    oifname "{bridge}" drop
    {dns}
    ip daddr @metadata drop
    {denied}
    meta oifkind "bridge" {not_uplink}drop
    tcp flags syn tcp option maxseg size set rt mtu
    accept
  }}
  chain inward {{
    ct state established,related accept
    drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    {masquerade}
  }}
}}
"#,
            table = bridge.table(),
        )
    }
}

fn joined<T: ToString>(all: impl Iterator<Item = T>) -> String {
    all.map(|one| one.to_string()).collect::<Vec<_>>().join(", ")
}
