//! Virtual machines, run by QEMU.
//!
//! ```text
//!  record    what is written of a machine: how it was made, started, ended
//!  make      image or snapshot -> layer -> a machine with a disk; its removal
//!  run       what a start needs, and giving it back
//!  host      QEMU and its accelerator; net, devices: what machines have around them
//!  live      a running QEMU, watched until it is gone
//!  oom       whether the node's kernel killed it for memory
//!  console   its serial console
//!  cut       machines whose network was taken from under them
//!  devices   GPUs that machines have
//!  snapshot  freeze, list, delete
//!  rest      what steps that were given up left, cleared away
//!
//!  <data>/vm/layers  disks/<id>  snapshots/<id>/<tag>.json  agent.img
//! ```
//!
//! All that is known of a machine is in its directory and in its process, so a runner that was
//! killed anywhere takes up again what it finds ([`QemuBackend::adopt`]).

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use kohakuriver_model::{InstanceId, InstanceSpec, Inventory};
use kohakuriver_runner_link::protocol::{self, NodeReply, Order, Snapshot};
use kohakuriver_vm::accel::AccelWish;
use kohakuriver_vm::disk::{DiskError, Disks};
use kohakuriver_vm::image::ImageStore;
use kohakuriver_vm::network::user::Outward;
use kohakuriver_vm::network::{BridgeName, Subnet};
use tokio::net::UnixStream;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::agent_files;
use crate::agent_stream::AgentAddress;
use crate::backend::{
    Backend, BackendError, BackendState, Change, Limits, Progress, Remarks, SnapshotSpec,
};
use crate::clock;
use crate::layout::Layout;

mod console;
mod detached;
mod devices;
mod host;
mod live;
mod make;
mod net;
mod oom;
mod record;
mod rest;
mod retained;
mod run;
mod snapshot;

use host::Host;
use live::Live;
use record::MachineDir;

/// The node's configuration for the QEMU backend.
#[derive(Clone, Debug)]
pub struct QemuConfig {
    pub layout: Layout,
    /// Our own executable: becomes QEMU, and is the agent in guests.
    pub executable: PathBuf,
    pub settings: MachineSettings,
}

/// The operator's settings for the VMs of a node.
#[derive(Clone, Debug)]
pub struct MachineSettings {
    pub accel: AccelWish,
    /// The bridge that machines are on, where the runner is root.
    pub bridge: BridgeName,
    /// Where their addresses come from.
    pub subnet: Subnet,
    /// The networks that guests may reach where the runner is not root.
    pub outward: Outward,
    /// How long a guest may take to power off before it is ended.
    pub stop_grace: Duration,
    /// How long a guest's agent may take to answer after a start.
    pub boot_limit: Duration,
}

impl Default for MachineSettings {
    fn default() -> Self {
        Self {
            accel: AccelWish::Auto,
            bridge: BridgeName::default(),
            subnet: Subnet::default(),
            outward: Outward::Closed,
            stop_grace: Duration::from_secs(60),
            boot_limit: Duration::from_secs(300),
        }
    }
}

/// From an order to a QEMU that runs.
const START_LIMIT: Duration = Duration::from_secs(60);

const STALLED: &str = "it stands still: the node's disk is full, or cannot be written; it goes on \
    by itself when there is space";

type Reattaching = tokio::task::JoinHandle<Option<()>>;

/// Cheap to clone: everything is shared.
#[derive(Clone, Debug)]
pub struct QemuBackend {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: QemuConfig,
    disks: Disks,
    images: ImageStore,
    host: Host,
    live: Mutex<HashMap<InstanceId, Arc<Live>>>,
    /// The tasks that retry connecting to QEMUs that did not answer.
    reattaching: Mutex<HashMap<InstanceId, Reattaching>>,
    /// Layers that are about to be built on, and by whom.
    promised: Mutex<HashMap<InstanceId, String>>,
    /// Held while addresses are chosen, and while layers are begun or collected.
    making: tokio::sync::Mutex<()>,
    /// Held while the disk with our executable is written.
    agent_disk: tokio::sync::Mutex<()>,
    /// Machines whose network device or GPUs could not be given back.
    owing: Mutex<BTreeSet<InstanceId>>,
    /// Devices of machines that are gone may be left.
    devices_left: AtomicBool,
    /// Something that belongs to no machine could not be removed.
    untidy: AtomicBool,
    untidied: tokio::sync::Notify,
    /// Held while the images are listed, for as long as shared storage takes.
    listing: Arc<tokio::sync::Mutex<()>>,
    events: broadcast::Sender<Change>,
    /// The runner lets go of its machines.
    left: CancellationToken,
}

impl QemuBackend {
    pub fn new(config: QemuConfig) -> Self {
        let host = Host::new(&config);
        Self::with_host(config, host)
    }

    #[cfg(test)]
    fn without_bridge(config: QemuConfig) -> Self {
        let mut host = Host::new(&config);
        host.net.without_bridge();
        Self::with_host(config, host)
    }

    fn with_host(config: QemuConfig, host: Host) -> Self {
        let disks = Disks::new(config.layout.machines_dir());
        let images = ImageStore::new(config.layout.vm_images());
        let (events, _) = broadcast::channel(64);
        let shared = Shared {
            disks,
            images,
            host,
            live: Mutex::default(),
            reattaching: Mutex::default(),
            promised: Mutex::default(),
            making: tokio::sync::Mutex::default(),
            agent_disk: tokio::sync::Mutex::default(),
            owing: Mutex::default(),
            devices_left: AtomicBool::default(),
            untidy: AtomicBool::default(),
            untidied: tokio::sync::Notify::new(),
            listing: Arc::default(),
            events,
            config,
            left: CancellationToken::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Lets go of every machine: they run on, for the next runner to take up.
    pub fn leave(&self) {
        self.shared.left.cancel();
        self.lock().clear();
    }

    fn dir(&self, id: InstanceId) -> MachineDir {
        MachineDir(self.shared.disks.disks_dir().join(id.to_string()))
    }

    fn live(&self, id: InstanceId) -> Option<Arc<Live>> {
        self.lock().get(&id).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, Arc<Live>>> {
        self.shared.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reattaching(&self) -> MutexGuard<'_, HashMap<InstanceId, Reattaching>> {
        self.shared.reattaching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machines whose directories are there.
    fn ids(&self) -> io::Result<Vec<InstanceId>> {
        let entries = match fs::read_dir(self.shared.disks.disks_dir()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
        let ids = names.filter_map(|name| match name {
            Ok(name) => name.to_str()?.parse().ok().map(Ok),
            Err(error) => Some(Err(error)),
        });
        ids.collect()
    }
}

/// A failure of the files that describe machines, which a look at them again may get over.
fn files(error: io::Error) -> BackendError {
    disk(DiskError::Files(error))
}

fn disk(error: DiskError) -> BackendError {
    match error {
        DiskError::Full(reason) => BackendError::DiskFull { reason },
        DiskError::Files(error) if error.kind() == io::ErrorKind::StorageFull => {
            BackendError::DiskFull { reason: error.to_string() }
        }
        DiskError::NoTool(_) => BackendError::NoMachine {
            reason: error.to_string(),
            hint: "install qemu-utils on the node".to_owned(),
        },
        DiskError::Files(_) | DiskError::Tool(_) | DiskError::Layer(_) => BackendError::Refused {
            by: "the node",
            act: "use the disk of",
            reason: error.to_string(),
        },
    }
}

#[async_trait]
impl Backend for QemuBackend {
    async fn describe(&self, inventory: &mut Inventory) {
        inventory.vm = self.shared.host.state().await;
    }

    async fn prepare(&self, order: &Order, progress: Progress<'_>) -> Result<String, BackendError> {
        self.prepare_layer(order, progress).await
    }

    async fn create(&self, order: &Order, image: &str) -> Result<(), BackendError> {
        self.make(order, image).await
    }

    async fn start(&self, id: InstanceId) -> Result<(), BackendError> {
        self.start_machine(id).await
    }

    async fn pause(&self, id: InstanceId) -> Result<(), BackendError> {
        self.refuse_freezing(id, "pause")
    }

    async fn resume(&self, id: InstanceId) -> Result<(), BackendError> {
        self.refuse_freezing(id, "resume")
    }

    async fn stop(&self, id: InstanceId) -> Result<(), BackendError> {
        if let Some(live) = self.live(id) {
            live.stop(self.shared.config.settings.stop_grace).await;
            live.wait_gone().await;
        }
        self.end_stray(id).await
    }

    async fn kill(&self, id: InstanceId) -> Result<(), BackendError> {
        if let Some(live) = self.live(id) {
            live.kill().await;
            live.wait_gone().await;
        }
        self.end_stray(id).await
    }

    async fn resize(&self, id: InstanceId, spec: &InstanceSpec) -> Result<(), BackendError> {
        if self.live(id).is_some() || self.unmanaged(id).is_some() {
            let reason = "a running machine keeps its processors and its memory".to_owned();
            return Err(BackendError::Refused { by: "QEMU", act: "resize", reason });
        }
        let dir = self.dir(id);
        let Some(mut machine) = dir.machine().map_err(files)? else { return Ok(()) };
        machine.limits = host::limits(spec);
        dir.write_machine(&machine).map_err(files)
    }

    fn limits(&self, spec: &InstanceSpec) -> Limits {
        host::limits(spec).into()
    }

    async fn remove(&self, id: InstanceId) -> Result<(), BackendError> {
        self.kill(id).await?;
        self.unmake(id).await
    }

    async fn inspect(&self, id: InstanceId) -> Result<Option<BackendState>, BackendError> {
        let dir = self.dir(id);
        let Some(machine) = dir.machine().map_err(files)? else { return Ok(None) };
        if let Some(live) = self.live(id) {
            // One that has just died has more to be cleared away.
            live.settle().await;
        }
        let (life, started, ended) = dir.life().map_err(files)?;
        Ok(Some(BackendState {
            life,
            started,
            disk: machine.disk_generation,
            oom: ended.is_some_and(|ended| ended.oom),
            limits: machine.limits.into(),
            epoch: clock::boot_id(),
        }))
    }

    async fn create_snapshot(
        &self,
        id: InstanceId,
        wish: &SnapshotSpec,
        keep: u32,
    ) -> Result<Snapshot, BackendError> {
        self.freeze(id, wish, keep).await
    }

    async fn list_snapshots(&self, id: InstanceId) -> Result<Vec<Snapshot>, BackendError> {
        self.snapshots(id)
    }

    async fn delete_snapshot(&self, id: InstanceId, tag: u64) -> Result<(), BackendError> {
        self.forget_snapshot(id, tag).await
    }

    async fn delete_all_snapshots(&self, id: InstanceId) -> Result<(), BackendError> {
        self.forget_snapshots(id).await
    }

    async fn tidy(&self, id: InstanceId) -> Result<(), BackendError> {
        self.tidy_machine(id).await
    }

    async fn list(&self) -> Result<Vec<(InstanceId, BackendState)>, BackendError> {
        let mut all = Vec::new();
        for id in self.ids().map_err(files)? {
            // One that cannot be looked at is its own driver's trouble.
            if let Ok(Some(found)) = self.inspect(id).await {
                all.push((id, found));
            }
        }
        Ok(all)
    }

    fn agent(&self, id: InstanceId) -> Option<AgentAddress> {
        self.agent_address(id)
    }

    fn boot_limit(&self) -> Duration {
        self.shared.config.settings.boot_limit
    }

    fn remarks(&self, id: InstanceId) -> Remarks {
        let machine = self.dir(id).machine().ok().flatten();
        Remarks {
            address: machine
                .and_then(|machine| self.shared.host.net.displayed(machine.address))
                .map(Into::into),
            warning: self.trouble(id).or_else(|| self.shared.host.warning()),
        }
    }

    async fn refresh_settings(&self, order: &Order) -> io::Result<()> {
        agent_files::refresh_settings(&self.shared.config.layout, order)?;
        self.send_settings(order.task_id);
        Ok(())
    }

    async fn log_tail(&self, id: InstanceId) -> String {
        console::last_lines(self.dir(id).path())
    }

    async fn attach(&self, id: InstanceId, stream: UnixStream) {
        let live = self.live_soon(id).await;
        match live.as_ref().and_then(|live| live.console.as_ref()) {
            Some(console) => console.serve(stream).await,
            None => console::refuse(self.dir(id).path(), stream).await,
        }
    }

    fn retained(&self) -> io::Result<Vec<protocol::Machine>> {
        self.ids()?.into_iter().map(|id| self.retained_of(id)).collect()
    }

    fn images(&self) -> NodeReply {
        self.list_images()
    }

    fn events(&self) -> BoxStream<'static, Change> {
        let receiver = self.shared.events.subscribe();
        let changes = futures_util::stream::unfold(receiver, |mut receiver| async {
            match receiver.recv().await {
                Ok(change) => Some((change, receiver)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((Change::Everything, receiver)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        });
        futures_util::stream::once(std::future::ready(Change::Everything)).chain(changes).boxed()
    }
}

impl QemuBackend {
    fn refuse_freezing(&self, id: InstanceId, act: &'static str) -> Result<(), BackendError> {
        if self.live(id).is_none() {
            return Ok(());
        }
        let reason = "virtual machines cannot be paused; stop and restart keep the disk".to_owned();
        Err(BackendError::Refused { by: "QEMU", act, reason })
    }

    /// Returns the fault of a running VM, or the reason why it does not run.
    fn trouble(&self, id: InstanceId) -> Option<String> {
        if let Some(live) = self.live(id) {
            return live.is_stalled().then(|| STALLED.to_owned()).or_else(|| live.detached());
        }
        let dir = self.dir(id);
        let newest = dir.started().map(|(_, mark)| mark)?;
        let ended = dir.ended().filter(|ended| ended.started == newest)?;
        Some(ended.reason).filter(|reason| !reason.is_empty())
    }

    /// Waits for a VM that is being started: a client may attach as soon as it is announced.
    async fn live_soon(&self, id: InstanceId) -> Option<Arc<Live>> {
        let deadline = tokio::time::Instant::now() + START_LIMIT;
        loop {
            let live = self.live(id);
            let dir = self.dir(id);
            let newest = dir.started().map(|(_, mark)| mark);
            let rests = newest.is_some() && dir.ended().map(|ended| ended.started) == newest;
            if live.is_some() || rests || tokio::time::Instant::now() >= deadline {
                return live;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn executable(&self) -> OsString {
        self.shared.config.executable.clone().into()
    }
}
