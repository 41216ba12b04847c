//! The bridge and its TAPs: for a runner that is root.

use std::net::Ipv4Addr;

use kohakuriver_model::InstanceId;
use tokio::sync::Mutex;

use super::command::{run, script};
use super::kernel::{self, Device, Guest, Seen, bridge_alias, tap_alias};
use super::{BridgeName, Mac, NetworkError, Nic, Owner, Subnet, TAP_FD, firewall, rules, tap_name};

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// What a node's owner may choose, and whose network it is.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    pub bridge: BridgeName,
    pub subnet: Subnet,
    /// What guests ask; they reach these ports 53 even where the address is this machine's own.
    pub nameservers: Vec<Ipv4Addr>,
    pub owner: Owner,
}

/// The network of a node's machines.
#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
    /// One change at a time: each reads what is there, and acts on that.
    changing: Mutex<()>,
}

impl Network {
    pub fn new(config: NetworkConfig) -> Self {
        Self { config, changing: Mutex::new(()) }
    }

    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// What a machine at `address` has, attached or not.
    pub fn nic(&self, id: InstanceId, address: Ipv4Addr, guest_port: u16) -> Nic {
        let mac = Mac::of(address);
        let tap = tap_name(id);
        Nic {
            args: Nic::args(format!("tap,id=net0,fd={TAP_FD}"), mac),
            tap: Some(tap),
            mac,
            address,
            prefix: self.config.subnet.prefix(),
            gateway: self.config.subnet.gateway(),
            nameservers: self.config.nameservers.clone(),
            agent: (address, guest_port).into(),
        }
    }

    /// Makes the TAP of an instance, for a QEMU of the user `uid`. One that is there is made anew.
    ///
    /// # Errors
    /// Something of that name or address is there that is not this instance's; nothing was
    /// changed then, or what was is taken back.
    pub async fn attach(
        &self,
        id: InstanceId,
        address: Ipv4Addr,
        uid: u32,
    ) -> Result<(), NetworkError> {
        let _changing = self.changing.lock().await;
        let subnet = self.config.subnet;
        if !subnet.is_assignable(address) {
            return Err(NetworkError::BadAddress { address, subnet });
        }
        let seen = self.see().await?;
        let mut guests = seen.guests(&self.config.bridge, &self.config.owner);
        let has_guests = guests.iter().any(|other| other.id != id);
        // Where the bridge was removed, those that were on it come along.
        let mut stranded = seen.stranded(&self.config.owner);
        stranded.retain(|other| other.id != id);
        guests.extend_from_slice(&stranded);
        let guest = Guest { id, tap: tap_name(id), address };
        guests.retain(|other| other.id != id);
        if let Some(other) = guests.iter().find(|other| other.address == address) {
            return Err(NetworkError::AddressTaken { address, id: other.id });
        }
        let in_the_way = seen.taps.iter().any(|tap| tap.name == guest.tap);
        if in_the_way && !seen.own_taps(&self.config.owner).any(|(own, _)| own == id) {
            return Err(NetworkError::DeviceTaken { name: guest.tap });
        }
        self.ensure_bridge(&seen, has_guests).await?;
        if in_the_way {
            delete(&guest.tap).await?;
        }
        guests.push(guest.clone());
        let plugged = self.plug(&guest, uid, &guests, &seen).await;
        if plugged.is_err() {
            // What failed is the news; the next change puts the rest right.
            let _ = delete(&guest.tap).await;
        }
        for other in &stranded {
            // Theirs is no failure of this one.
            if let Err(error) = self.connect(other, "").await {
                tracing::warn!(id = %other.id, %error, "a machine does not come back to the bridge");
            }
        }
        plugged
    }

    /// Removes the TAP of an instance, and the bridge and its rules with the last one.
    ///
    /// # Errors
    /// It is still there, or its traces are; may be repeated.
    pub async fn detach(&self, id: InstanceId) -> Result<(), NetworkError> {
        let _changing = self.changing.lock().await;
        self.remove_taps(|tap| tap == id).await.map(drop)
    }

    /// Removes what is left of machines that are not among the living, and tells whose it was.
    ///
    /// # Errors
    /// As for [`Self::detach`].
    pub async fn sweep(&self, living: &[InstanceId]) -> Result<Vec<InstanceId>, NetworkError> {
        let _changing = self.changing.lock().await;
        self.remove_taps(|tap| !living.contains(&tap)).await
    }

    /// Puts right what others changed: flushed rules, forwarding switched off, a bridge that was
    /// removed under its machines. Does nothing where no machine runs.
    ///
    /// # Errors
    /// It could not be put right.
    pub async fn repair(&self) -> Result<(), NetworkError> {
        let _changing = self.changing.lock().await;
        let seen = self.see().await?;
        let mut guests = seen.guests(&self.config.bridge, &self.config.owner);
        let stranded = seen.stranded(&self.config.owner);
        let on_bridge = !guests.is_empty();
        guests.extend_from_slice(&stranded);
        if guests.is_empty() {
            return Ok(());
        }
        self.ensure_bridge(&seen, on_bridge).await?;
        self.apply_rules(&guests, &seen).await?;
        for guest in &stranded {
            self.connect(guest, "").await?;
        }
        Ok(())
    }

    /// Removes everything, also under machines that run.
    ///
    /// # Errors
    /// Something of it is still there.
    pub async fn remove(&self) -> Result<(), NetworkError> {
        let _changing = self.changing.lock().await;
        self.remove_taps(|_| true).await.map(drop)
    }

    pub(super) async fn see(&self) -> Result<Seen, NetworkError> {
        Ok(Seen::now(&self.config.bridge).await?)
    }

    /// Puts a TAP that is there back on the bridge.
    pub(super) async fn reconnect(&self, guest: &Guest) -> Result<(), NetworkError> {
        let _changing = self.changing.lock().await;
        self.connect(guest, "").await
    }

    async fn plug(
        &self,
        guest: &Guest,
        uid: u32,
        guests: &[Guest],
        seen: &Seen,
    ) -> Result<(), NetworkError> {
        // They know the device by its name, before it is there: it never carries a frame unfiltered.
        self.apply_rules(guests, seen).await?;
        let Guest { tap, address, .. } = guest;
        let alias = tap_alias(&self.config.owner, *address);
        let made =
            format!("tuntap add dev {tap} mode tap user {uid}\nlink set dev {tap} alias {alias}\n");
        self.connect(guest, &made).await
    }

    /// Puts a TAP on the bridge, after what makes it.
    async fn connect(&self, guest: &Guest, made: &str) -> Result<(), NetworkError> {
        let Guest { tap, address, .. } = guest;
        let (bridge, mac) = (&self.config.bridge, Mac::of(*address));
        // Nothing is learned and nothing is flooded: where a frame goes is written down, and a
        // port talks to the bridge alone.
        let batch = format!(
            "{made}link set dev {tap} down\n\
             link set dev {tap} master {bridge}\n\
             link set dev {tap} type bridge_slave isolated on learning off flood off mcast_flood off bcast_flood off\n\
             {ipv6}link set dev {tap} up\n\
             neigh replace {address} lladdr {mac} dev {bridge} nud permanent\n",
            ipv6 = without_ipv6(tap),
        );
        script("make the machine's network device", &["ip", "-batch", "-"], &batch).await?;
        let frames = format!("fdb replace {mac} dev {tap} master static\n");
        let what = "write down the machine's network address";
        Ok(script(what, &["bridge", "-batch", "-"], &frames).await?)
    }

    async fn apply_rules(&self, guests: &[Guest], seen: &Seen) -> Result<(), NetworkError> {
        let text = rules::apply(&self.config, guests, seen.uplinks.iter());
        set("1", FORWARDING)?;
        tokio::try_join!(
            script("set the firewall's rules", &["nft", "-f", "-"], &text),
            firewall::accept(&self.config.bridge),
        )?;
        Ok(())
    }

    /// Makes the bridge what it has to be, or refuses to touch what is not ours.
    async fn ensure_bridge(&self, seen: &Seen, has_guests: bool) -> Result<(), NetworkError> {
        let NetworkConfig { bridge, subnet, owner, .. } = &self.config;
        let (gateway, prefix) = (subnet.gateway(), subnet.prefix());
        let mac = Mac::of(gateway).to_string();
        let mut batch = String::new();
        let mut add = |line: String| batch.push_str(&(line + "\n"));
        match &seen.bridge {
            None => add(format!(
                "link add name {bridge} address {mac} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
            )),
            Some(device) => self.check_ours(device).await?,
        }
        let old = seen.bridge.as_ref();
        let alias = bridge_alias(owner);
        if old.is_none_or(|device| device.alias != alias) {
            add(format!("link set dev {bridge} alias {alias}"));
        }
        let mut has_gateway = false;
        for (address, length) in old.into_iter().flat_map(Device::addresses) {
            let has = format!("{address}/{length}");
            if (address, length) == (gateway, prefix) {
                has_gateway = true;
            } else if has_guests {
                return Err(NetworkError::SubnetInUse {
                    bridge: bridge.clone(),
                    has,
                    subnet: *subnet,
                });
            } else {
                add(format!("addr del {has} dev {bridge}"));
            }
        }
        if !has_gateway {
            if let Some(other) = kernel::overlap(*subnet, bridge).await? {
                return Err(NetworkError::SubnetTaken { subnet: *subnet, other });
            }
            add(format!("addr add {gateway}/{prefix} dev {bridge}"));
        }
        // Guests remember it: it must not change with the TAPs that come and go.
        if old.is_some_and(|device| device.address != mac) {
            add(format!("link set dev {bridge} address {mac}"));
        }
        if !old.is_some_and(Device::is_up) {
            add(format!("{}link set dev {bridge} up", without_ipv6(bridge.as_str())));
        }
        if !batch.is_empty() {
            script("make the machines' bridge", &["ip", "-batch", "-"], &batch).await?;
        }
        Ok(())
    }

    async fn check_ours(&self, device: &Device) -> Result<(), NetworkError> {
        let NetworkConfig { bridge, owner, .. } = &self.config;
        let taken = |what: &str| {
            Err(NetworkError::BridgeTaken { bridge: bridge.clone(), what: what.to_owned() })
        };
        if !device.is_bridge() {
            return taken("is no bridge");
        }
        if device.alias == bridge_alias(owner) {
            return Ok(());
        }
        if kernel::is_some_runners(&device.alias) {
            return taken("belongs to another runner of this node");
        }
        // Making it may have been cut off right after its first step; then it is nobody's.
        let is_bare =
            device.alias.is_empty() && device.addresses().next().is_none() && !device.is_up();
        if is_bare && !kernel::has_ports(bridge).await? {
            return Ok(());
        }
        taken("was not made by this runner")
    }

    async fn remove_taps(
        &self,
        gone: impl Fn(InstanceId) -> bool,
    ) -> Result<Vec<InstanceId>, NetworkError> {
        let NetworkConfig { bridge, owner, .. } = &self.config;
        let mut seen = self.see().await?;
        let mut removed = Vec::new();
        for (id, tap) in seen.own_taps(owner).filter(|(id, _)| gone(*id)) {
            // Another bridge's machines of ours are no business of this one.
            if tap.master.as_deref().is_none_or(|master| master == bridge.as_str()) {
                delete(&tap.name).await?;
                removed.push(id);
            }
        }
        seen.taps.retain(|tap| !removed.iter().any(|id| tap.name == tap_name(*id)));
        let guests = seen.guests(bridge, owner);
        let ours = match &seen.bridge {
            Some(device) => self.check_ours(device).await.is_ok(),
            None => true,
        };
        if !ours {
            return Ok(removed);
        }
        if guests.is_empty() {
            self.dismantle(&seen).await?;
        } else if !removed.is_empty() {
            self.forget_neighbours(&guests).await?;
            self.apply_rules(&guests, &seen).await?;
        }
        Ok(removed)
    }

    /// Rules first: the bridge's name says whose they are.
    async fn dismantle(&self, seen: &Seen) -> Result<(), NetworkError> {
        let bridge = &self.config.bridge;
        let text = rules::remove(bridge);
        tokio::try_join!(
            script("remove the firewall's rules", &["nft", "-f", "-"], &text),
            firewall::forget(bridge),
        )?;
        if seen.bridge.is_some() {
            delete(bridge.as_str()).await?;
        }
        Ok(())
    }

    async fn forget_neighbours(&self, guests: &[Guest]) -> Result<(), NetworkError> {
        let bridge = &self.config.bridge;
        let mut batch = String::new();
        for address in kernel::neighbours(bridge).await? {
            if !guests.iter().any(|guest| guest.address == address) {
                batch.push_str(&format!("neigh del {address} dev {bridge}\n"));
            }
        }
        if !batch.is_empty() {
            script("forget a machine's address", &["ip", "-batch", "-"], &batch).await?;
        }
        Ok(())
    }
}

async fn delete(device: &str) -> Result<(), NetworkError> {
    run("remove a network device", &["ip", "link", "del", "dev", device]).await?;
    Ok(())
}

/// Guests have none, so the node shall not speak it to them, as its end of a TAP would.
fn without_ipv6(device: &str) -> String {
    if std::fs::exists("/proc/sys/net/ipv6").unwrap_or(false) {
        format!("link set dev {device} addrgenmode none\n")
    } else {
        String::new()
    }
}

/// Writes a setting of the kernel's that has another value.
fn set(value: &str, path: &str) -> Result<(), NetworkError> {
    let setting = |source| NetworkError::Setting { path: path.to_owned(), source };
    if std::fs::read_to_string(path).map_err(setting)?.trim() == value {
        return Ok(());
    }
    std::fs::write(path, value).map_err(setting)
}
