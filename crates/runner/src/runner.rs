//! Putting the runner together, and its end.
//!
//! ```text
//!  start: lock data dir -> ledger -> agent executable -> drivers      run: session + data pool
//!  shutdown: leave the host, let drivers end their step, go; instances run on
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_model::Inventory;
use kohakuriver_runner_link::pki::RunnerIdentity;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::agent_files;
use crate::backend::Backends;
use crate::backend::docker::{ContainerSettings, DockerBackend, DockerConfig};
use crate::backend::qemu::{MachineSettings, QemuBackend, QemuConfig};
use crate::driver::{STARTS_AT_ONCE, Shared};
use crate::inventory::detect_inventory;
use crate::layout::Layout;
use crate::ledger::{Ledger, LedgerError};
use crate::lock::DataDirLock;
use crate::observation_board::ObservationBoard;
use crate::session::Session;
use crate::streams::Streams;
use crate::supervisor::InstanceSupervisor;

/// A step that takes longer is taken up again at the next start.
const FINISH_LIMIT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct RunnerConfig {
    /// The runner's own state, for example `/var/lib/kohakuriver/runner`.
    pub data_dir: PathBuf,
    /// Storage that all nodes see; `shared_data` in it is `/shared` in instances.
    pub shared_dir: PathBuf,
    /// Our own static executable, which becomes the agent in instances.
    pub executable: PathBuf,
    /// `None`: `DOCKER_HOST`, else `/var/run/docker.sock`.
    pub docker_socket: Option<PathBuf>,
    /// How long a container may take to end before it is killed.
    pub stop_grace: Duration,
    pub containers: ContainerSettings,
    pub machines: MachineSettings,
}

#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    #[error("the runner's records cannot be used")]
    Ledger(#[from] LedgerError),
    #[error("cannot copy {executable} to where instances find their agent")]
    Agent { executable: PathBuf, source: std::io::Error },
}

/// A runner whose instances are being driven; [`Runner::run`] connects it to its host.
pub struct Runner {
    supervisor: Arc<InstanceSupervisor>,
    shared: Arc<Shared>,
    identity: watch::Sender<RunnerIdentity>,
    streams: Arc<Streams>,
    machines: QemuBackend,
    _lock: DataDirLock,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").finish_non_exhaustive()
    }
}

impl Runner {
    /// Takes up every instance that the data directory knows. The lock is the directory's.
    pub async fn start(
        config: RunnerConfig,
        identity: RunnerIdentity,
        lock: DataDirLock,
    ) -> Result<Self, RunnerError> {
        let layout = Layout::new(&config.data_dir, &config.shared_dir);
        let docker = Arc::new(DockerBackend::new(DockerConfig {
            layout: layout.clone(),
            node: identity.node_name.clone(),
            socket: config.docker_socket.clone(),
            stop_grace: config.stop_grace,
            containers: config.containers.clone(),
        }));
        let machines = QemuBackend::new(QemuConfig {
            layout: layout.clone(),
            executable: config.executable.clone(),
            settings: config.machines.clone(),
        });
        // Before any driver looks: a running machine must be seen to run.
        machines.adopt().await;
        let backends = Backends { docker, qemu: Arc::new(machines.clone()) };
        Self::start_with(config, layout, identity, backends, machines, lock).await
    }

    async fn start_with(
        config: RunnerConfig,
        layout: Layout,
        identity: RunnerIdentity,
        backends: Backends,
        machines: QemuBackend,
        lock: DataDirLock,
    ) -> Result<Self, RunnerError> {
        let ledger = Ledger::new(layout.clone());
        let (records, damaged) = ledger.load_all()?;
        let copied = tokio::task::spawn_blocking({
            let (layout, executable) = (layout.clone(), config.executable.clone());
            move || agent_files::install_agent(&layout, &executable)
        });
        copied
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .map_err(|source| RunnerError::Agent { executable: config.executable, source })?;
        tracing::info!(node = %identity.node_name, instances = records.len(), "runner started");
        let shared = Arc::new(Shared {
            backends,
            ledger,
            layout,
            board: Arc::new(ObservationBoard::default()),
            starts: Semaphore::new(STARTS_AT_ONCE),
            shutdown: CancellationToken::new(),
        });
        let supervisor = InstanceSupervisor::new(Arc::clone(&shared), records, damaged);
        let streams = Arc::new(Streams::new(Arc::clone(&supervisor)));
        Ok(Self {
            supervisor,
            shared,
            identity: watch::Sender::new(identity),
            streams,
            machines,
            _lock: lock,
        })
    }

    /// Returns the node's current inventory.
    pub async fn inventory(&self) -> Inventory {
        detect_inventory(&self.shared.backends, self.shared.layout.data()).await
    }

    /// The ways into this node's instances, for a host in the same process.
    pub fn streams(&self) -> Arc<Streams> {
        Arc::clone(&self.streams)
    }

    /// Serves the host until `shutdown`. Instances run on afterwards.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RunnerError> {
        let session = Session::new(
            Arc::clone(&self.supervisor),
            Arc::clone(&self.shared),
            self.identity.clone(),
            Arc::clone(&self.streams),
        );
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = session.run() => {}
            ((), ()) = async { tokio::join!(self.supervisor.watch_backend(), self.supervisor.report_orphans()) } => {}
        }
        self.shared.shutdown.cancel();
        self.supervisor.finish(FINISH_LIMIT).await;
        self.machines.leave();
        tracing::info!("runner stopped; its instances run on");
        Ok(())
    }
}
