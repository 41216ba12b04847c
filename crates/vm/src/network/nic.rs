use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};

use super::Mac;

/// A machine's network card: what QEMU is started with, and what the guest is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// QEMU's arguments, `-netdev` and `-device`.
    pub args: Vec<String>,
    /// The TAP that QEMU is given at [`TAP_FD`](super::TAP_FD).
    pub tap: Option<String>,
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    pub nameservers: Vec<Ipv4Addr>,
    /// Where the runner finds the guest's agent.
    pub agent: SocketAddr,
}

impl Nic {
    /// The card itself, on whatever `netdev` is. No boot ROM: nothing boots from the network.
    pub(super) fn args(netdev: String, mac: Mac) -> Vec<String> {
        let device = format!("virtio-net-pci,id=nic0,netdev=net0,mac={mac},romfile=");
        ["-netdev".to_owned(), netdev, "-device".to_owned(), device].to_vec()
    }

    /// NoCloud's `network-config`, version 2.
    pub fn network_config(&self) -> String {
        let Self { mac, address, prefix, gateway, .. } = self;
        let mut text = format!(
            "version: 2\n\
             ethernets:\n\
             \x20 primary:\n\
             \x20   match:\n\
             \x20     macaddress: \"{mac}\"\n\
             \x20   dhcp4: false\n\
             \x20   dhcp6: false\n\
             \x20   addresses: [{address}/{prefix}]\n\
             \x20   routes:\n"
        );
        // Not `to: default`: cloud-init 22 with systemd-networkd fails on the word, and the guest
        // comes up without any network.
        let _ = writeln!(text, "      - {{to: 0.0.0.0/0, via: {gateway}}}");
        if !self.nameservers.is_empty() {
            let servers: Vec<String> = self.nameservers.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "    nameservers:\n      addresses: [{}]", servers.join(", "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_told_all_it_needs() {
        let address = Ipv4Addr::new(10, 200, 0, 2);
        let nic = Nic {
            args: Nic::args("user,id=net0".into(), Mac::of(address)),
            tap: None,
            mac: Mac::of(address),
            address,
            prefix: 24,
            gateway: Ipv4Addr::new(10, 200, 0, 1),
            nameservers: vec![Ipv4Addr::new(10, 0, 0, 53), Ipv4Addr::new(1, 1, 1, 1)],
            agent: (address, 7722).into(),
        };
        let expected = r#"version: 2
ethernets:
  primary:
    match:
      macaddress: "52:54:00:c8:00:02"
    dhcp4: false
    dhcp6: false
    addresses: [10.200.0.2/24]
    routes:
      - {to: 0.0.0.0/0, via: 10.200.0.1}
    nameservers:
      addresses: [10.0.0.53, 1.1.1.1]
"#;
        assert_eq!(nic.network_config(), expected);
        let alone = Nic { nameservers: vec![], ..nic };
        assert!(!alone.network_config().contains("nameservers"));
    }
}
