//! The network of a node's containers: a bridge of our own, and the border around it.
//!
//! ```text
//!  unknown --ensure--> network there, rules set, ports pinned --a start--> one more port pinned
//!     ^                                       |
//!     +------ the engine was away, or --------+   every GUARD_EVERY the rules are set again
//!             has another network
//! ```
//!
//! The engine's default bridge lets containers reach one another and every port of the node.
//! Docker makes ours with `enable_icc=false`; what that leaves open is closed by
//! [`ContainerBorder`], where the runner is root. A container whose port cannot be pinned does not
//! come up. docs/concepts/containment.md has what holds.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{
    ContainerInspectResponse, EndpointSettings, Ipam, IpamConfig, NetworkConnectRequest,
    NetworkCreateRequest, NetworkDisconnectRequest, NetworkInspect,
};
use bollard::query_parameters::InspectNetworkOptions;
use kohakuriver_model::InstanceId;
use kohakuriver_vm::network::{
    BorderConfig, ContainerBorder, NetworkError, Plug, Subnet, nameservers,
};
use tokio::sync::Mutex;

use super::DockerConfig;
use super::client::{Engine, status};
use super::container;
use super::create_body::LABEL_MANAGED;
use super::resolver;
use super::settings::ContainerSettings;
use crate::backend::BackendError;

const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
const BRIDGE_ICC: &str = "com.docker.network.bridge.enable_icc";
/// The longest time until flushed rules are restored.
const GUARD_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct ContainerNetwork {
    settings: ContainerSettings,
    /// `None`: the runner may not set rules.
    border: Option<ContainerBorder>,
    servers: Vec<Ipv4Addr>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The engine's id of the network that was made or found.
    id: Option<String>,
    guarded: Option<Instant>,
    /// The border has holes, and why.
    warning: Option<String>,
    /// A container that ran before the runner did is not pinned, and why.
    unpinned: Option<String>,
}

impl ContainerNetwork {
    pub fn new(settings: ContainerSettings) -> Self {
        let servers = nameservers();
        let border = nix::unistd::geteuid().is_root().then(|| {
            ContainerBorder::new(BorderConfig {
                bridge: settings.network.clone(),
                nameservers: servers.clone(),
                denied: settings.denied.clone(),
            })
        });
        Self { settings, border, servers, known: Mutex::default() }
    }

    /// Whom containers ask for names.
    pub fn servers(&self) -> &[Ipv4Addr] {
        &self.servers
    }

    pub fn name(&self) -> &str {
        self.settings.network.as_str()
    }

    /// As [`Self::ensure`], without asking the engine again for what was seen a moment ago.
    pub async fn ensure_soon(
        &self,
        engine: &Engine,
        config: &DockerConfig,
    ) -> Result<(), BackendError> {
        let is_fresh = {
            let known = self.known.lock().await;
            known.id.is_some() && known.guarded.is_some_and(|then| then.elapsed() < GUARD_EVERY)
        };
        if is_fresh { Ok(()) } else { self.ensure(engine, config).await }
    }

    /// Sees to it that the network is there and its border whole.
    ///
    /// # Errors
    /// Docker has no such network and cannot make it. A border with holes is a warning instead:
    /// see [`Self::warning`].
    pub async fn ensure(&self, engine: &Engine, config: &DockerConfig) -> Result<(), BackendError> {
        let docker = engine.docker().await?;
        let mut known = self.known.lock().await;
        let network = self.find_or_make(engine, &docker).await?;
        let is_known = network.id.is_some() && network.id == known.id;
        if is_known && known.guarded.is_some_and(|then| then.elapsed() < GUARD_EVERY) {
            return Ok(());
        }
        let warning = self.guard(&network).await.err();
        let plugged = self.plug_all_in(engine, &docker, config).await;
        // One that was plugged in has a port that nobody has pinned yet.
        let is_due = !is_known || known.unpinned.is_some() || !matches!(plugged, Ok(0));
        let unpinned = if warning.is_none() && is_due {
            self.pin_all(engine, &docker, config).await.err()
        } else {
            None
        };
        let unpinned = plugged.err().or(unpinned);
        if let Some(unpinned) = unpinned.as_ref().filter(|_| unpinned != known.unpinned) {
            tracing::warn!("{unpinned}");
        }
        if warning != known.warning {
            match &warning {
                Some(warning) => tracing::warn!("{warning}"),
                None => tracing::info!("the border of the containers' network is whole"),
            }
        }
        *known = Known { id: network.id, guarded: Some(Instant::now()), warning, unpinned };
        Ok(())
    }

    /// Whatever was known may have changed: the engine was away.
    pub async fn forget(&self) {
        self.known.lock().await.id = None;
    }

    /// Returns the part of the isolation that is missing.
    pub async fn warning(&self) -> Option<String> {
        let known = self.known.lock().await;
        known.warning.clone().or_else(|| known.unpinned.clone())
    }

    /// Pins the port of a container that was started.
    ///
    /// # Errors
    /// It cannot be pinned, though the border is whole otherwise. Where it has holes, which the
    /// node's people have been told, one more would be no reason to keep the container from running.
    pub async fn pin(
        &self,
        answer: &ContainerInspectResponse,
        id: InstanceId,
    ) -> Result<(), BackendError> {
        let Some(border) = &self.border else { return Ok(()) };
        let pinned = match self.plug(answer) {
            Ok(Some(plug)) => border.pin(&plug).await.map_err(|error| with_cause(&error)),
            Ok(None) => Ok(()),
            Err(reason) => Err(reason),
        };
        let Err(reason) = pinned else { return Ok(()) };
        if self.known.lock().await.warning.is_some() {
            tracing::warn!(task.id = %id, reason, "a container's port is not pinned to it");
            return Ok(());
        }
        Err(BackendError::NotContained { reason })
    }

    /// Plugs a container in again whose network was removed under it, as `docker network prune`
    /// does under those that are stopped.
    pub async fn plug_in_again(
        &self,
        engine: &Engine,
        config: &DockerConfig,
        id: InstanceId,
    ) -> Result<(), BackendError> {
        self.ensure(engine, config).await?;
        let docker = engine.docker().await?;
        tracing::info!(task.id = %id, "connecting the container to its network again");
        self.connect(engine, &docker, id).await
    }

    async fn connect(
        &self,
        engine: &Engine,
        docker: &Docker,
        id: InstanceId,
    ) -> Result<(), BackendError> {
        let container = container::name(id);
        let gone = NetworkDisconnectRequest { container: container.clone(), force: Some(true) };
        let _ = docker.disconnect_network(self.name(), gone).await;
        let request =
            NetworkConnectRequest { container, endpoint_config: Some(EndpointSettings::default()) };
        docker
            .connect_network(self.name(), request)
            .await
            .map_err(|error| engine.refused("plug in", error))
    }

    async fn find_or_make(
        &self,
        engine: &Engine,
        docker: &Docker,
    ) -> Result<NetworkInspect, BackendError> {
        if let Some(network) = self.find(engine, docker).await? {
            return Ok(network);
        }
        let made = docker.create_network(self.request()).await;
        // Another runner of this machine may have been quicker.
        match (self.find(engine, docker).await?, made) {
            (Some(network), _) => Ok(network),
            (None, Err(error)) => {
                let refused = engine.refused("make the network of", error);
                if refused.is_engine_away() {
                    return Err(refused);
                }
                Err(BackendError::Unavailable {
                    reason: refused.to_string(),
                    hint: "start the runner with another --container-network or \
                           --container-subnet; where br_netfilter is missing: modprobe br_netfilter"
                        .to_owned(),
                })
            }
            (None, Ok(_)) => Err(self.unusable("went as soon as it was made")),
        }
    }

    async fn find(
        &self,
        engine: &Engine,
        docker: &Docker,
    ) -> Result<Option<NetworkInspect>, BackendError> {
        let found = docker.inspect_network(self.name(), None::<InspectNetworkOptions>).await;
        let network = match found {
            Ok(network) => network,
            Err(error) if status(&error) == Some(404) => return Ok(None),
            Err(error) => return Err(engine.failure(error)),
        };
        // The engine also finds what only begins with the name, or has it as its id.
        if network.name.as_deref() != Some(self.name()) {
            return Ok(None);
        }
        let label = |name: &str| Some(network.labels.as_ref()?.get(name)?.as_str());
        let option = |name: &str| Some(network.options.as_ref()?.get(name)?.as_str());
        if label(LABEL_MANAGED) != Some("true") {
            return Err(self.unusable("was not made by a runner"));
        }
        let is_ours = network.driver.as_deref() == Some("bridge")
            && option(BRIDGE_ICC) == Some("false")
            && option(BRIDGE_NAME) == Some(self.name());
        if is_ours { Ok(Some(network)) } else { Err(self.unusable("lets containers reach others")) }
    }

    fn unusable(&self, why: &str) -> BackendError {
        let name = self.name();
        BackendError::Unavailable {
            reason: format!("its network {name} {why}"),
            hint: format!(
                "remove it (docker network rm {name}), or start the runner with another \
                 --container-network"
            ),
        }
    }

    fn request(&self) -> NetworkCreateRequest {
        let text = |text: &str| text.to_owned();
        let ipam = self.settings.subnet.map(|subnet| Ipam {
            config: Some(vec![IpamConfig {
                subnet: Some(subnet.to_string()),
                gateway: Some(subnet.gateway().to_string()),
                ..IpamConfig::default()
            }]),
            ..Ipam::default()
        });
        NetworkCreateRequest {
            name: text(self.name()),
            driver: Some(text("bridge")),
            ipam,
            options: Some(HashMap::from([
                (text(BRIDGE_NAME), text(self.name())),
                (text(BRIDGE_ICC), text("false")),
            ])),
            labels: Some(HashMap::from([(text(LABEL_MANAGED), text("true"))])),
            ..NetworkCreateRequest::default()
        }
    }

    /// Sets the rules. The error is a sentence.
    async fn guard(&self, network: &NetworkInspect) -> Result<(), String> {
        let Some(border) = &self.border else {
            return Err("containers reach this node's own ports: only root can keep them from it; run the runner as root".to_owned());
        };
        let (subnet, gateway) = addresses(network)
            .ok_or("the containers' network has addresses that are not understood")?;
        if let Some(wish) = self.settings.subnet.filter(|wish| *wish != subnet) {
            tracing::warn!(
                "the containers' network has {subnet}, not {wish}; it becomes that when it is removed while no VPS is on it: docker network rm {}",
                self.name()
            );
        }
        let open = |error: NetworkError| {
            format!("containers reach this node's own ports: {}", with_cause(&error))
        };
        border.guard(subnet, gateway).await.map_err(open)
    }

    /// Connects running containers that were disconnected from the network they were made for.
    /// Returns how many. The error is a sentence.
    async fn plug_all_in(
        &self,
        engine: &Engine,
        docker: &Docker,
        config: &DockerConfig,
    ) -> Result<usize, String> {
        let running = container::ours(engine, docker, config, false).await;
        let mut plugged = 0;
        for (id, container) in running.map_err(|error| error.to_string())? {
            let mode = container.host_config.as_ref().and_then(|host| host.network_mode.as_deref());
            let networks = container.network_settings.and_then(|all| all.networks);
            if !self.lacks(mode, networks.as_ref()) {
                continue;
            }
            tracing::warn!(task.id = %id, "a VPS was disconnected from its network; it is connected again");
            let connected = self.connect(engine, docker, id).await;
            connected.map_err(|error| format!("VPS {id} has no network: {error}"))?;
            plugged += 1;
        }
        Ok(plugged)
    }

    /// Whether a container is without the network that it was made for.
    pub fn is_unplugged(&self, answer: &ContainerInspectResponse) -> bool {
        let mode = answer.host_config.as_ref().and_then(|host| host.network_mode.as_deref());
        let networks = answer.network_settings.as_ref().and_then(|all| all.networks.as_ref());
        self.lacks(mode, networks)
    }

    fn lacks(
        &self,
        mode: Option<&str>,
        networks: Option<&HashMap<String, EndpointSettings>>,
    ) -> bool {
        mode == Some(self.name()) && networks.is_none_or(|all| !all.contains_key(self.name()))
    }

    /// Pins the ports of all that run: they were there before the runner. The error is a sentence.
    async fn pin_all(
        &self,
        engine: &Engine,
        docker: &Docker,
        config: &DockerConfig,
    ) -> Result<(), String> {
        let Some(border) = &self.border else { return Ok(()) };
        let (mut plugs, mut outcome) = (Vec::new(), Ok(()));
        let running = container::ours(engine, docker, config, false).await;
        for (id, _) in running.map_err(|error| error.to_string())? {
            if let Ok(answer) = docker.inspect_container(&container::name(id), None).await {
                match self.plug(&answer) {
                    Ok(plug) => plugs.extend(plug),
                    Err(reason) => outcome = Err(reason),
                }
            }
        }
        let pinned = border.pin_all(&plugs).await.map_err(|error| with_cause(&error));
        let unpinned = |reason| format!("a VPS can take others' network addresses: {reason}");
        pinned.and(outcome).map_err(unpinned)
    }

    /// Where the container's end is, after its names were looked after; `None` where it has none,
    /// because it does not run or was made for another network.
    fn plug(&self, answer: &ContainerInspectResponse) -> Result<Option<Plug>, String> {
        let pid = answer.state.as_ref().and_then(|state| i32::try_from(state.pid?).ok());
        let networks = answer.network_settings.as_ref().and_then(|all| all.networks.as_ref());
        let end = networks.and_then(|networks| networks.get(self.name()));
        let (Some(pid), Some(end)) = (pid.filter(|pid| *pid > 0), end) else { return Ok(None) };
        let mac = end.mac_address.as_ref().and_then(|text| text.parse().ok());
        let address = end.ip_address.as_ref().and_then(|text| text.parse().ok());
        let (Some(mac), Some(address)) = (mac, address) else {
            return Err("its addresses on the containers' network are not known".to_owned());
        };
        let resolver = answer.resolv_conf_path.as_ref().filter(|path| !path.is_empty());
        let asks_itself =
            resolver.map(|path| resolver::ask_outside(Path::new(path), &self.servers));
        if let Some(Err(error)) = &asks_itself {
            tracing::debug!(%error, "a container goes on asking the engine for names");
        }
        let hide_neighbours = matches!(asks_itself, Some(Ok(())));
        Ok(Some(Plug { pid, mac, address, hide_neighbours }))
    }
}

fn addresses(network: &NetworkInspect) -> Option<(Subnet, Ipv4Addr)> {
    network.ipam.as_ref()?.config.as_ref()?.iter().find_map(|config| {
        let subnet: Subnet = config.subnet.as_ref()?.parse().ok()?;
        let gateway = config.gateway.as_ref().and_then(|text| text.parse().ok());
        Some((subnet, gateway.unwrap_or_else(|| subnet.gateway())))
    })
}

fn with_cause(error: &NetworkError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
