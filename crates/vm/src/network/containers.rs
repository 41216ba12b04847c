//! The border around a node's containers, on a bridge that their engine makes.
//!
//! The engine gives addresses and masquerades. What it does not do is done here: the rules that
//! machines have ([`super::rules`]) hold for containers too, and each container's port is pinned
//! to what the engine gave it:
//!
//! ```text
//!  container starts --pin--> its port is isolated: it talks to the bridge and to no other port
//!                            its MAC belongs to that port, its address to that MAC: written
//!                            down, so that nobody else who claims them is believed
//!  container ends   -------> the port goes and takes its MAC along; the address is written anew
//!                            for who gets it next
//! ```
//!
//! A container keeps raw sockets (`ping` needs them as Debian installs it); pinned, it can say it
//! were a neighbour, but hears no answer.

use std::net::Ipv4Addr;

use tokio::sync::Mutex;

use super::command::script;
use super::kernel;
use super::port;
use super::rules::{Border, Inside};
use super::{BridgeName, Mac, NetworkError, Prefix, Subnet};

/// What a node's owner may choose of it.
#[derive(Clone, Debug)]
pub struct BorderConfig {
    pub bridge: BridgeName,
    /// What containers ask; they reach these ports 53 even where the address is this machine's own.
    pub nameservers: Vec<Ipv4Addr>,
    /// What they shall not reach besides.
    pub denied: Vec<Prefix>,
}

/// A container's end of the bridge, as its engine tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plug {
    /// A process of the container.
    pub pid: i32,
    pub mac: Mac,
    pub address: Ipv4Addr,
    /// It asks nameservers itself, so the engine's need not be reached.
    pub hide_neighbours: bool,
}

/// The border of one bridge.
#[derive(Debug)]
pub struct ContainerBorder {
    config: BorderConfig,
    /// One change at a time: each reads what is there, and acts on that.
    changing: Mutex<()>,
}

impl ContainerBorder {
    pub fn new(config: BorderConfig) -> Self {
        Self { config, changing: Mutex::new(()) }
    }

    /// Makes the rules what they should be, whatever they were. They stay until they are removed
    /// by hand: what is inside outlives the runner.
    ///
    /// # Errors
    /// There is no such bridge here, or no firewall to be set.
    pub async fn guard(&self, subnet: Subnet, gateway: Ipv4Addr) -> Result<(), NetworkError> {
        let _changing = self.changing.lock().await;
        let BorderConfig { bridge, nameservers, denied } = &self.config;
        // Of the thread: a process may have threads in several network namespaces, tests do.
        let devices = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
        let named = |line: &str| {
            line.split_once(':').is_some_and(|(name, _)| name.trim() == bridge.as_str())
        };
        if !devices.lines().any(named) {
            return Err(NetworkError::BridgeMissing { bridge: bridge.clone() });
        }
        let inside = Inside::Containers;
        let border = Border { bridge, subnet, gateway, nameservers, denied, inside };
        let text = border.apply(kernel::uplinks().await?.iter());
        script("set the firewall's rules", &["nft", "-f", "-"], &text).await?;
        Ok(())
    }

    /// Pins a container's port.
    ///
    /// # Errors
    /// It is not there, or cannot be pinned.
    pub async fn pin(&self, plug: &Plug) -> Result<(), NetworkError> {
        let _changing = self.changing.lock().await;
        self.pin_one(plug).await
    }

    /// Pins the ports of all containers there are, and forgets whose container is gone.
    ///
    /// # Errors
    /// The first that could not be pinned; the others are.
    pub async fn pin_all(&self, plugs: &[Plug]) -> Result<(), NetworkError> {
        let _changing = self.changing.lock().await;
        let bridge = &self.config.bridge;
        let mut batch = String::new();
        for address in kernel::neighbours(bridge).await? {
            if !plugs.iter().any(|plug| plug.address == address) {
                batch.push_str(&format!("neigh del {address} dev {bridge}\n"));
            }
        }
        if !batch.is_empty() {
            script("forget a container's address", &["ip", "-batch", "-"], &batch).await?;
        }
        let mut outcome = Ok(());
        for plug in plugs {
            let pinned = self.pin_one(plug).await;
            if outcome.is_ok() {
                outcome = pinned;
            }
        }
        outcome
    }

    async fn pin_one(&self, plug: &Plug) -> Result<(), NetworkError> {
        let Plug { pid, mac, address, hide_neighbours } = *plug;
        let entered = |source| NetworkError::Inside { source };
        let outside = port::here().map_err(entered)?;
        let inside = port::of_process(pid).await.map_err(entered)?;
        if hide_neighbours {
            port::hide_engine_names(&inside).await?;
        }
        let found = port::find(&outside, &inside, &self.config.bridge).await?;
        port::pin(&outside, found, mac, address).await
    }
}
