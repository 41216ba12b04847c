//! Docker containers, over the engine's HTTP API.
//!
//! ```text
//!  client      one connection per request; probes the engine again after a failure
//!  settings    limits and permissions set by the node's owner
//!  image       registry, environment tarball or base environment -> image id, without VOLUMEs
//!  base_image  the base environment, built where none is configured
//!  create_body the request that creates a container
//!  container   create, start, pause, stop, kill, resize, remove, inspect
//!  network     the containers' own bridge and the border around it
//!  resolver    the nameservers of a container that an older version made
//!  own_files   /etc/hosts, resolv.conf and hostname, kept over starts and in snapshots
//!  shared_storage  /shared without set-user-id files
//!  found       from the engine's answer to what the plan needs, and the kernel's count of OOM kills
//!  attach      a program in a container without the agent
//!  vet         refuses disks that would make the engine hang
//!  orphans     processes left by an engine that was killed during a start
//!  snapshot    commit, list, delete
//!  flatten     one layer in place of a chain
//!  leftovers   removes interrupted and unused snapshots
//!  events      changes, as hints
//! ```
//!
//! Labels say what is ours: nothing else is ever touched.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use kohakuriver_model::{DockerState, InstanceId, InstanceSpec, Inventory, NodeName};
use kohakuriver_runner_link::protocol::{Order, Snapshot};
use tokio::net::UnixStream;

use crate::agent_files;
use crate::agent_stream::AgentAddress;
use crate::backend::{Backend, BackendError, BackendState, Change, Limits, Progress, SnapshotSpec};
use crate::layout::Layout;

mod allowed;
mod attach;
mod base_image;
mod client;
mod container;
mod create_body;
mod events;
mod flatten;
mod found;
mod image;
mod leftovers;
mod network;
mod orphans;
mod own_files;
mod resolver;
mod settings;
mod shared_job;
mod shared_storage;
mod snapshot;
mod tarball;
mod vet;

pub use client::Engine;
pub use settings::ContainerSettings;
#[cfg(test)]
pub(crate) use tarball::pack as pack_tar;

/// The node's configuration for the Docker backend.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    pub layout: Layout,
    pub node: NodeName,
    /// `None`: `DOCKER_HOST`, else `/var/run/docker.sock`.
    pub socket: Option<PathBuf>,
    /// Between SIGTERM and SIGKILL for one that is stopped.
    pub stop_grace: Duration,
    pub containers: ContainerSettings,
}

/// How long an agent may take to answer; it is a small static program.
const AGENT_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct DockerBackend {
    engine: Arc<Engine>,
    config: DockerConfig,
    images: image::Images,
    network: network::ContainerNetwork,
    allowed: allowed::Allowed,
    shared: shared_storage::SharedStorage,
    leftovers: leftovers::Leftovers,
}

impl DockerBackend {
    pub fn new(config: DockerConfig) -> Self {
        let engine = Arc::new(Engine::new(config.socket.clone()));
        let images = image::Images::new(
            Arc::clone(&engine),
            config.layout.clone(),
            config.containers.clone(),
        );
        let network = network::ContainerNetwork::new(config.containers.clone());
        let shared = shared_storage::SharedStorage::new(config.layout.shared_data());
        let allowed = allowed::Allowed::new(&config.containers, config.layout.data());
        let leftovers = leftovers::Leftovers::default();
        Self { engine, config, images, network, allowed, shared, leftovers }
    }

    /// Sets up the isolation that a container needs before it is created or started.
    async fn enclose(&self) -> Result<(), BackendError> {
        if let Err(error) = self.shared.ensure() {
            tracing::debug!(%error, "set-user-id files in shared storage have their effect");
        }
        self.network.ensure_soon(&self.engine, &self.config).await
    }
}

#[async_trait]
impl Backend for DockerBackend {
    async fn describe(&self, inventory: &mut Inventory) {
        inventory.docker = self.engine.probe().await;
        inventory.docker_warning = None;
        inventory.allows_privileged = self.allowed.privileged();
        inventory.allowed_mounts = self.allowed.mounts();
        inventory.allowed_registries = Some(self.config.containers.registries.clone());
        inventory.local_images = self.config.containers.local_images.clone();
        match &inventory.docker {
            DockerState::Ready { .. } => {
                let ensured = self.network.ensure(&self.engine, &self.config).await;
                inventory.docker_warning = match ensured {
                    Ok(()) => self.network.warning().await,
                    Err(error) => Some(match error.hint() {
                        Some(hint) => format!("{error}: {hint}"),
                        None => error.to_string(),
                    }),
                };
            }
            DockerState::Unavailable { .. } => self.network.forget().await,
        }
    }

    fn permits(&self, spec: &InstanceSpec) -> Result<(), BackendError> {
        self.allowed.permits(spec)
    }

    async fn prepare(&self, order: &Order, progress: Progress<'_>) -> Result<String, BackendError> {
        self.images.prepare(&order.spec, progress).await
    }

    async fn create(&self, order: &Order, image: &str) -> Result<(), BackendError> {
        self.enclose().await?;
        container::create(&self.engine, &self.config, self.network.servers(), order, image).await
    }

    async fn start(&self, id: InstanceId) -> Result<(), BackendError> {
        self.enclose().await?;
        container::start(&self.engine, &self.network, &self.config, id).await
    }

    async fn contain(&self, id: InstanceId) -> Result<(), BackendError> {
        let docker = self.engine.docker().await?;
        let inspect = async || {
            let found = docker.inspect_container(&container::name(id), None).await;
            found.map_err(|error| self.engine.failure(error))
        };
        let mut answer = inspect().await?;
        if self.network.is_unplugged(&answer) {
            self.network.plug_in_again(&self.engine, &self.config, id).await?;
            answer = inspect().await?;
        }
        self.network.pin(&answer, id).await?;
        self.allowed.verify(&answer)
    }

    async fn pause(&self, id: InstanceId) -> Result<(), BackendError> {
        container::pause(&self.engine, id).await
    }

    async fn resume(&self, id: InstanceId) -> Result<(), BackendError> {
        container::resume(&self.engine, id).await
    }

    async fn stop(&self, id: InstanceId) -> Result<(), BackendError> {
        container::stop(&self.engine, id, self.config.stop_grace).await
    }

    async fn kill(&self, id: InstanceId) -> Result<(), BackendError> {
        container::kill(&self.engine, id).await
    }

    async fn resize(&self, id: InstanceId, spec: &InstanceSpec) -> Result<(), BackendError> {
        container::resize(&self.engine, id, found::limits(spec)).await
    }

    fn limits(&self, spec: &InstanceSpec) -> Limits {
        found::limits(spec)
    }

    async fn create_snapshot(
        &self,
        id: InstanceId,
        wish: &SnapshotSpec,
        keep: u32,
    ) -> Result<Snapshot, BackendError> {
        let _committing = self.leftovers.commit(id).await;
        let own = own_files::OwnFiles::new(self.config.layout.own(id));
        snapshot::create(&self.engine, &own, id, wish, keep).await
    }

    async fn outside(&self, id: InstanceId) -> Result<Vec<String>, BackendError> {
        container::outside(&self.engine, id).await
    }

    async fn list_snapshots(&self, id: InstanceId) -> Result<Vec<Snapshot>, BackendError> {
        snapshot::list(&self.engine, id).await
    }

    async fn delete_snapshot(&self, id: InstanceId, tag: u64) -> Result<(), BackendError> {
        self.leftovers.expect_images();
        snapshot::delete(&self.engine, id, tag).await
    }

    async fn delete_all_snapshots(&self, id: InstanceId) -> Result<(), BackendError> {
        self.leftovers.expect_images();
        snapshot::delete_all(&self.engine, id).await
    }

    async fn tidy(&self, id: InstanceId) -> Result<(), BackendError> {
        self.leftovers.clear(&self.engine, id).await
    }

    async fn remove(&self, id: InstanceId) -> Result<(), BackendError> {
        container::remove(&self.engine, id).await?;
        self.leftovers.expect_images();
        Ok(())
    }

    async fn inspect(&self, id: InstanceId) -> Result<Option<BackendState>, BackendError> {
        container::inspect(&self.engine, id).await
    }

    async fn list(&self) -> Result<Vec<(InstanceId, BackendState)>, BackendError> {
        container::list(&self.engine, &self.config).await
    }

    fn agent(&self, id: InstanceId) -> Option<AgentAddress> {
        Some(AgentAddress::Socket(self.config.layout.run(id)))
    }

    fn boot_limit(&self) -> Duration {
        AGENT_LIMIT
    }

    async fn refresh_settings(&self, order: &Order) -> std::io::Result<()> {
        agent_files::refresh_settings(&self.config.layout, order)
    }

    async fn log_tail(&self, id: InstanceId) -> String {
        let Ok(docker) = self.engine.docker().await else {
            return String::new();
        };
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail("20").build();
        let lines = docker.logs(&container::name(id), Some(options));
        // Bounded: a container may write lines of any length.
        let text = lines
            .take_while(|line| std::future::ready(line.is_ok()))
            .filter_map(|line| std::future::ready(line.ok()))
            .fold(String::new(), |mut text, line| {
                text.push_str(&line.to_string());
                std::future::ready(text)
            });
        let text = tokio::time::timeout(Duration::from_secs(5), text).await.unwrap_or_default();
        let text = text.trim();
        let start = text.ceil_char_boundary(text.len().saturating_sub(1500));
        text[start..].to_owned()
    }

    async fn attach(&self, id: InstanceId, stream: UnixStream) {
        attach::serve(&self.engine, id, stream).await;
    }

    fn events(&self) -> BoxStream<'static, Change> {
        events::stream(Arc::clone(&self.engine), &self.config.node)
    }
}
