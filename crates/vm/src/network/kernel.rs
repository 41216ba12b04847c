//! What is there now, as the kernel tells.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use kohakuriver_model::InstanceId;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::command::{CommandError, finish, run};
use super::names::{is_plain_device, tap_owner};
use super::{BridgeName, Owner, Subnet};

const MARK: &str = "kohakuriver";

/// A network device, as far as it matters here.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Device {
    #[serde(rename = "ifname")]
    pub name: String,
    #[serde(default, rename = "ifalias")]
    pub alias: String,
    #[serde(default)]
    pub master: Option<String>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    pub address: String,
    #[serde(default, rename = "linkinfo")]
    link: LinkInfo,
    #[serde(default, rename = "addr_info")]
    addresses: Vec<Address>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct LinkInfo {
    #[serde(default, rename = "info_kind")]
    kind: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Address {
    local: IpAddr,
    #[serde(rename = "prefixlen")]
    prefix: u8,
}

impl Device {
    pub fn is_up(&self) -> bool {
        self.flags.iter().any(|flag| flag == "UP")
    }

    pub fn has_carrier(&self) -> bool {
        self.flags.iter().any(|flag| flag == "LOWER_UP")
    }

    /// Its IPv4 addresses, each with its prefix.
    pub fn addresses(&self) -> impl Iterator<Item = (Ipv4Addr, u8)> {
        self.addresses.iter().filter_map(|address| match address.local {
            IpAddr::V4(local) => Some((local, address.prefix)),
            IpAddr::V6(_) => None,
        })
    }

    pub fn is_bridge(&self) -> bool {
        self.link.kind == "bridge"
    }
}

/// A TAP of this runner, with a guest or with one that has gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Guest {
    pub id: InstanceId,
    pub tap: String,
    pub address: Ipv4Addr,
}

/// The bridge, if there is one of that name, and every TAP of the machine.
#[derive(Debug)]
pub(super) struct Seen {
    pub bridge: Option<Device>,
    pub taps: Vec<Device>,
    /// Devices that a default route leads through.
    pub uplinks: BTreeSet<String>,
}

impl Seen {
    pub async fn now(bridge: &BridgeName) -> Result<Self, CommandError> {
        let own = ["ip", "-j", "-d", "addr", "show", "dev", bridge.as_str()];
        let taps = ["ip", "-j", "-d", "link", "show", "type", "tun"];
        let (bridge, taps, uplinks) =
            tokio::try_join!(finish(&own, ""), list::<Device>(&taps), uplinks())?;
        // No such device is what it says with an error.
        let bridge: Vec<Device> =
            if bridge.status.success() { parse(own[0], &bridge.stdout)? } else { Vec::new() };
        Ok(Self { bridge: bridge.into_iter().next(), taps, uplinks })
    }

    /// The TAPs that are this runner's and on the bridge.
    pub fn guests(&self, bridge: &BridgeName, owner: &Owner) -> Vec<Guest> {
        self.guests_of(owner, Some(bridge.as_str()))
    }

    /// Those whose bridge somebody removed.
    pub fn stranded(&self, owner: &Owner) -> Vec<Guest> {
        self.guests_of(owner, None)
    }

    fn guests_of(&self, owner: &Owner, master: Option<&str>) -> Vec<Guest> {
        let there = self.taps.iter().filter(|tap| tap.master.as_deref() == master);
        there
            .filter_map(|tap| {
                let id = tap_owner(&tap.name)?;
                let address = guest_address(&tap.alias, owner)?;
                Some(Guest { id, tap: tap.name.clone(), address })
            })
            .collect()
    }

    /// TAPs of this runner, and those whose making was cut off before anything said whose they are.
    pub fn own_taps(&self, owner: &Owner) -> impl Iterator<Item = (InstanceId, &Device)> {
        self.taps.iter().filter_map(move |tap| {
            let id = tap_owner(&tap.name)?;
            let unfinished = tap.alias.is_empty() && tap.master.is_none() && !tap.is_up();
            let ours = tap.alias.starts_with(&bridge_alias(owner)) || unfinished;
            ours.then_some((id, tap))
        })
    }
}

/// What says that a bridge is this runner's.
pub(super) fn bridge_alias(owner: &Owner) -> String {
    format!("{MARK}:{}", owner.as_str())
}

/// What says that a bridge is a runner's, whichever.
pub(super) fn is_some_runners(alias: &str) -> bool {
    alias.starts_with(MARK)
}

/// What says whose a TAP is, and what its guest may call itself.
pub(super) fn tap_alias(owner: &Owner, address: Ipv4Addr) -> String {
    format!("{}:{address}", bridge_alias(owner))
}

fn guest_address(alias: &str, owner: &Owner) -> Option<Ipv4Addr> {
    alias.strip_prefix(&bridge_alias(owner))?.strip_prefix(':')?.parse().ok()
}

/// Devices that a default route leads through.
pub(super) async fn uplinks() -> Result<BTreeSet<String>, CommandError> {
    let routes = list::<Route>(&["ip", "-j", "-4", "route", "show", "default"]).await?;
    let devices = routes.into_iter().filter_map(|route| route.dev);
    Ok(devices.filter(|device| is_plain_device(device)).collect())
}

#[derive(Debug, Deserialize)]
struct Route {
    #[serde(default)]
    dst: String,
    #[serde(default)]
    dev: Option<String>,
}

/// What of the machine's own has addresses in common with the subnet.
pub(super) async fn overlap(
    subnet: Subnet,
    bridge: &BridgeName,
) -> Result<Option<String>, CommandError> {
    let (devices, routes) = tokio::try_join!(
        list::<Device>(&["ip", "-j", "-4", "addr", "show"]),
        list::<Route>(&["ip", "-j", "-4", "route", "show"]),
    )?;
    for device in devices.iter().filter(|device| device.name != bridge.as_str()) {
        let mut addresses = device.addresses();
        if let Some((local, prefix)) =
            addresses.find(|(local, prefix)| subnet.overlaps(*local, *prefix))
        {
            return Ok(Some(format!("the address {local}/{prefix} of {}", device.name)));
        }
    }
    let others = routes.iter().filter(|route| route.dev.as_deref() != Some(bridge.as_str()));
    for Route { dst, .. } in others {
        // The default route leads everywhere and stands in nobody's way.
        let (base, prefix) = dst.split_once('/').unwrap_or((dst, "32"));
        if let (Ok(base), Ok(prefix)) = (base.parse(), prefix.parse())
            && subnet.overlaps(base, prefix)
        {
            return Ok(Some(format!("the route to {dst}")));
        }
    }
    Ok(None)
}

/// Whether anything is plugged into the bridge.
pub(super) async fn has_ports(bridge: &BridgeName) -> Result<bool, CommandError> {
    let ports = list::<Device>(&["ip", "-j", "link", "show", "master", bridge.as_str()]).await?;
    Ok(!ports.is_empty())
}

/// The permanent neighbours on the bridge, which are the guests'.
pub(super) async fn neighbours(bridge: &BridgeName) -> Result<Vec<Ipv4Addr>, CommandError> {
    #[derive(Deserialize)]
    struct Neighbour {
        dst: Ipv4Addr,
    }
    let argv = ["ip", "-j", "-4", "neigh", "show", "dev", bridge.as_str(), "nud", "permanent"];
    Ok(list::<Neighbour>(&argv).await?.into_iter().map(|neighbour| neighbour.dst).collect())
}

pub(super) async fn list<T: DeserializeOwned>(argv: &[&str]) -> Result<Vec<T>, CommandError> {
    let text = run("read the network's state", argv).await?;
    parse(argv.first().copied().unwrap_or_default(), &text)
}

fn parse<T: DeserializeOwned>(program: &str, text: &[u8]) -> Result<Vec<T>, CommandError> {
    if text.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    // `ip` leaves an empty object where a device does not match its filter.
    let wrong = |source| CommandError::Answer { program: program.to_owned(), source };
    let values: Vec<serde_json::Value> = serde_json::from_slice(text).map_err(wrong)?;
    let filled =
        values.into_iter().filter(|value| value.as_object().is_some_and(|o| !o.is_empty()));
    filled.map(|value| serde_json::from_value(value).map_err(wrong)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn an_alias_says_whose_a_tap_is_and_its_guests_address() {
        let (ours, other) = (Owner::of(Path::new("/a")), Owner::of(Path::new("/b")));
        let address = Ipv4Addr::new(10, 200, 0, 7);
        let alias = tap_alias(&ours, address);
        assert_eq!(guest_address(&alias, &ours), Some(address));
        assert_eq!(guest_address(&alias, &other), None);
        assert_eq!(guest_address(&bridge_alias(&ours), &ours), None);
        assert!(is_some_runners(&bridge_alias(&other)) && !is_some_runners("lan"));
    }

    #[test]
    fn what_ip_says_is_read_and_its_empty_objects_are_not() {
        let text =
            br#"[{},{"ifname":"kr0","flags":["UP"],"linkinfo":{"info_kind":"bridge"},"x":1}]"#;
        let devices: Vec<Device> = parse("ip", text).unwrap();
        assert!(devices.len() == 1 && devices[0].is_up() && devices[0].is_bridge());
        assert!(parse::<Device>("ip", b"\n").unwrap().is_empty());
        assert!(matches!(parse::<Device>("ip", b"[{"), Err(CommandError::Answer { .. })));
    }
}
