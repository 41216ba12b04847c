//! Starting a machine: what it needs around it, its process, and giving all of it back.
//!
//! ```text
//!  settle disk -> seed -> network, devices -> launch -> QEMU answers -> followed to its end
//!       a failure anywhere: everything that was taken is given back, and the reason is QEMU's own
//!  runner starts: living QEMUs are taken up again, what dead ones had is given back
//! ```

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kohakuriver_agent::{AgentConfig, CONFIG_FILE, GUEST_SECRET_FILE, HOST_KEY_FILE};
use kohakuriver_model::{InstanceId, VmAccel};
use kohakuriver_vm::accel::{self, Choice, Qemu};
use kohakuriver_vm::command::{self, Boot, RUN_DIR, SEED, UEFI_VARIABLES};
use kohakuriver_vm::disk::Disks;
use kohakuriver_vm::guest_agent::GuestAgent;
use kohakuriver_vm::image::{Firmware, INITRD_FILE, ImageMeta, KERNEL_FILE, KernelWhen};
use kohakuriver_vm::launch::{Launch, Process};
use kohakuriver_vm::seed::{Seed, write_agent_disk};
use kohakuriver_vm::vfio;
use tokio::process::{Child, Command};

use super::live::{Live, Started};
use super::record::{Machine, MachineDir, STARTED};
use super::rest::remove_traces;
use super::{QemuBackend, files};
use crate::agent_files;
use crate::agent_stream::{self, AgentAddress};
use crate::backend::{BackendError, Change};
use crate::ledger::Ledger;

/// A longer chain of layers is made one at the next start.
const MOST_LAYERS: usize = 8;
const QEMU_LOG: &str = "qemu.log";
const AGENT_DISK: &str = "agent-";
/// Between two tries to reach a QEMU that does not answer.
const REATTACH: Duration = Duration::from_secs(5);
const KILL_LIMIT: Duration = Duration::from_secs(20);
const UEFI_DIRS: [&str; 4] =
    ["/usr/share/OVMF", "/usr/share/edk2/ovmf", "/usr/share/edk2/x64", "/usr/share/qemu"];

impl QemuBackend {
    pub(super) async fn start_machine(&self, id: InstanceId) -> Result<(), BackendError> {
        if let Some(live) = self.live(id) {
            live.settle().await;
            if self.live(id).is_some() {
                return Ok(());
            }
        }
        self.end_stray(id).await?;
        let (qemu, choice) = self.shared.host.ready().await?;
        let dir = self.dir(id);
        let refused = |reason: String| BackendError::Refused { by: "QEMU", act: "start", reason };
        let Some(mut machine) = dir.machine().map_err(files)? else {
            return Err(refused("it has no disk".to_owned()));
        };
        self.ready_disk(&dir, &mut machine).await?;
        match self.launch(id, &dir, &mut machine, &qemu, &choice).await {
            Ok(started) => {
                self.follow(id, started);
                machine.boots_itself = true;
                dir.write_machine(&machine).map_err(files)
            }
            Err(error) => {
                // One that came up and does not answer must not keep what is given back.
                self.end_stray(id).await?;
                self.release_resources(id).await;
                Err(error)
            }
        }
    }

    /// The disk in one piece, and only that.
    pub(super) async fn ready_disk(
        &self,
        dir: &MachineDir,
        machine: &mut Machine,
    ) -> Result<(), BackendError> {
        self.settle(dir, machine)?;
        let disks = &self.shared.disks;
        disks.drop_old_disks(dir.path(), &machine.disk).map_err(files)?;
        if disks.chain(&machine.layer).map_err(super::disk)?.len() > MOST_LAYERS {
            let as_user = |args: &[&str]| self.qemu_img(dir, machine, args);
            match disks.flatten(dir.path(), &machine.disk, &machine.base, as_user).await {
                Ok(()) => {
                    machine.layer.clone_from(&machine.base);
                    dir.write_machine(machine).map_err(files)?;
                    let _making = self.shared.making.lock().await;
                    self.collect().await;
                }
                // A long chain is slower and as good.
                Err(error) => tracing::warn!(%error, "cannot flatten a VM's layers"),
            }
        }
        Ok(())
    }

    /// qemu-img in the machine's directory, as the machine's user.
    fn qemu_img(&self, dir: &MachineDir, machine: &Machine, args: &[&str]) -> Command {
        let launch = Launch {
            dir: dir.path().to_owned(),
            record: "qemu-img".into(),
            user: self.shared.host.net.user(machine.address),
            ..Launch::default()
        };
        let program = accel::find_program("qemu-img").unwrap_or_else(|| "qemu-img".into());
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let mut command = Command::new(self.executable());
        command.args(launch.to_args(&program, &args));
        command
    }

    async fn launch(
        &self,
        id: InstanceId,
        dir: &MachineDir,
        machine: &mut Machine,
        qemu: &Qemu,
        choice: &Choice,
    ) -> Result<Started, BackendError> {
        let host = &self.shared.host;
        let user = host.net.user(machine.address);
        let refused = |reason: String| BackendError::Refused { by: "QEMU", act: "start", reason };
        let meta = self.image_of(&machine.base)?;
        let nic = host.net.plug(id, machine).await?;
        if user.is_none() && machine.agent_port != Some(nic.agent.port()) {
            machine.agent_port = Some(nic.agent.port());
            dir.write_machine(machine).map_err(files)?;
        }
        let devices = host.devices.take(id, &machine.gpus, user).await?;
        self.write_seed(id, dir, &nic.network_config()).map_err(files)?;
        let boot = boot(&self.shared.disks, dir, machine, &meta).map_err(refused)?;
        let agent_disk = match machine.agent {
            true => Some(self.agent_disk().await.map_err(files)?),
            false => None,
        };
        give_files(dir, &machine.disk, user).map_err(files)?;
        let args = command::Machine {
            name: format!("vps-{id}"),
            accel: choice.accel,
            cpus: machine.limits.cores,
            memory_bytes: machine.limits.memory_bytes,
            numa: machine.numa.as_ref().map(|pin| pin.node),
            boot,
            disk: machine.disk.clone(),
            agent_disk,
            nic: nic.args.clone(),
            devices,
        };
        let launch = Launch {
            dir: dir.path().to_owned(),
            record: STARTED.into(),
            user,
            group: kvm_group(choice.accel),
            tap: nic.tap.clone(),
            cpus: machine.numa.as_ref().map(|pin| pin.cpus.clone()).unwrap_or_default(),
            lock_memory: !args.devices.is_empty(),
        };
        let words = launch.to_args(&qemu.program, &args.args());
        let child = spawn(&self.executable(), &words, dir).map_err(files)?;
        Live::connect(dir.clone(), Some(child)).await.map_err(|reason| {
            let said = last_words(dir);
            refused(if said.is_empty() { reason } else { said })
        })
    }

    /// Watches it from now on.
    fn follow(&self, id: InstanceId, started: Started) {
        let live = Arc::clone(&started.live);
        self.lock().insert(id, Arc::clone(&live));
        let (this, left) = (self.clone(), self.shared.left.clone());
        tokio::spawn(async move {
            let clear = || async {
                this.release_resources(id).await;
                let mut lives = this.lock();
                if lives.get(&id).is_some_and(|newest| Arc::ptr_eq(newest, &live)) {
                    lives.remove(&id);
                }
            };
            // Without a subscriber this fails, which is fine.
            let changed = || drop(this.shared.events.send(Change::Instance(id)));
            if left.run_until_cancelled(started.follow(&changed, clear)).await.is_some() {
                changed();
            }
        });
        let _ = self.shared.events.send(Change::Instance(id));
    }

    /// Releases the network and the devices of a VM that does not run.
    pub(super) async fn release(&self, id: InstanceId) -> Result<(), BackendError> {
        let removed = remove_traces(&self.dir(id)).map_err(files);
        // Until all is released: a call that is dropped half-way leaves the rest to the next check.
        self.owing().insert(id);
        let (net, devices) = (&self.shared.host.net, &self.shared.host.devices);
        let (unplugged, returned) = (net.unplug(id).await, devices.release(id).await);
        unplugged.and(returned)?;
        self.owing().remove(&id);
        removed
    }

    async fn release_resources(&self, id: InstanceId) {
        if let Err(error) = self.release(id).await {
            tracing::error!(task.id = %id, %error, "cannot release all resources of a VM; will retry");
        }
    }

    /// Returns a running QEMU that is not followed: it did not answer when it was started or found.
    pub(super) fn unmanaged(&self, id: InstanceId) -> Option<Process> {
        if self.live(id).is_some() { None } else { self.process(id) }
    }

    fn process(&self, id: InstanceId) -> Option<Process> {
        self.dir(id).started().map(|(process, _)| process).filter(|process| process.is_alive())
    }

    /// Ends a QEMU that cannot be asked to end.
    pub(super) async fn end_stray(&self, id: InstanceId) -> Result<(), BackendError> {
        // Whoever asks it again must not take the next one for it, nor clear away what that has.
        let asking = self.reattaching().remove(&id);
        if let Some(asking) = asking {
            asking.abort();
            let _ = asking.await;
            if self.process(id).is_none() {
                return self.release(id).await;
            }
        }
        let Some(process) = self.unmanaged(id) else { return Ok(()) };
        tracing::warn!(task.id = %id, pid = process.pid, "killing a QEMU that does not answer");
        process.kill();
        let deadline = tokio::time::Instant::now() + KILL_LIMIT;
        while process.is_alive() {
            if tokio::time::Instant::now() >= deadline {
                return Err(BackendError::Slow {
                    act: "killing QEMU",
                    seconds: KILL_LIMIT.as_secs(),
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let ended = self.dir(id).write_ended(Some(137), "its QEMU did not answer", false);
        ended.map_err(files)?;
        self.release(id).await
    }

    /// Adopts the state that an earlier runner left: running VMs, and resources of dead ones.
    pub async fn adopt(&self) {
        if self.shared.disks.disks_dir().exists()
            && let Err(error) = self.sweep_disks()
        {
            tracing::warn!(%error, "cannot remove leftovers of removed VMs; retried later");
            self.leave_untidy();
        }
        let ids = self.ids().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot list the VMs of this node");
            Vec::new()
        });
        let mut living = Vec::new();
        for id in ids.iter().copied() {
            let dir = self.dir(id);
            if self.process(id).is_none() {
                continue;
            }
            living.push(id);
            self.settle_living(id, &dir).await;
            match Live::connect(dir, None).await {
                Ok(started) => {
                    tracing::info!(task.id = %id, "a running VM is adopted");
                    self.follow(id, started);
                }
                Err(error) => {
                    tracing::warn!(task.id = %id, error, "a running QEMU does not answer");
                    self.reattach(id);
                }
            }
        }
        let whole = self.shared.host.sweep(&living).await;
        self.shared.devices_left.store(!whole, Ordering::Relaxed);
        if !whole {
            let dead = ids.iter().filter(|id| !living.contains(id));
            self.owing().extend(dead);
            self.leave_untidy();
        }
        self.keep_plugged();
        self.collect().await;
        self.keep_tidy();
    }

    /// Finishes a snapshot in the middle of which an earlier runner ended.
    async fn settle_living(&self, id: InstanceId, dir: &MachineDir) {
        let Ok(Some(mut machine)) = dir.machine() else { return };
        if machine.freezing.is_none() {
            return;
        }
        // It may have left the guest's filesystems frozen.
        GuestAgent::thaw_at(&dir.path().join(RUN_DIR)).await;
        if let Err(error) = self.settle(dir, &mut machine) {
            tracing::warn!(task.id = %id, %error, "cannot finish an interrupted snapshot");
        }
    }

    /// Retries connecting to a QEMU that does not answer, until it does or is gone.
    fn reattach(&self, id: InstanceId) {
        let (this, left) = (self.clone(), self.shared.left.clone());
        let asking = tokio::spawn(left.run_until_cancelled_owned(async move {
            while this.unmanaged(id).is_some() {
                tokio::time::sleep(REATTACH).await;
                if let Ok(started) = Live::connect(this.dir(id), None).await {
                    tracing::info!(task.id = %id, "a running VM is adopted after a retry");
                    this.follow(id, started);
                    return;
                }
            }
            if this.live(id).is_none() {
                this.release_resources(id).await;
            }
            let _ = this.shared.events.send(Change::Instance(id));
        }));
        self.reattaching().insert(id, asking);
    }

    fn write_seed(&self, id: InstanceId, dir: &MachineDir, network_config: &str) -> io::Result<()> {
        let etc = self.shared.config.layout.etc(id);
        let config = AgentConfig::read(&etc).map_err(io::Error::other)?;
        let mut settings = Vec::new();
        for name in [CONFIG_FILE, HOST_KEY_FILE, GUEST_SECRET_FILE] {
            settings.push((name.to_owned(), fs::read(etc.join(name))?));
        }
        // cloud-init writes them into the guest's files, from where nothing removes them. Keys that
        // come and go with accounts and shares are the agent's alone.
        let record = Ledger::new(self.shared.config.layout.clone()).load(id);
        let access = record.map_err(io::Error::other)?.and_then(|record| record.order.spec.ssh);
        let seed = Seed {
            instance_id: id.to_string(),
            hostname: config.hostname,
            authorized_keys: access.map(|ssh| ssh.authorized_keys).unwrap_or_default(),
            network_config: network_config.to_owned(),
            settings,
        };
        seed.write(&dir.path().join(SEED))
    }

    /// The disk with our executable, as QEMU finds it from a machine's directory.
    async fn agent_disk(&self) -> io::Result<OsString> {
        // Many machines start at once after a reboot, and one disk does for all.
        let _turn = self.shared.agent_disk.lock().await;
        let (root, program) =
            (self.shared.disks.root().to_owned(), self.shared.config.executable.clone());
        let name = tokio::task::spawn_blocking(move || agent_disk(&program, &root));
        Ok(format!("../../{}", name.await.map_err(io::Error::other)??).into())
    }

    pub(super) fn agent_address(&self, id: InstanceId) -> Option<AgentAddress> {
        let machine = self.dir(id).machine().ok()??;
        if !machine.agent {
            return None;
        }
        let secret = agent_files::guest_secret(&self.shared.config.layout, id).ok()?;
        let address = self.shared.host.net.agent(&machine)?;
        Some(AgentAddress::Guest { address, secret })
    }

    /// Sends new settings to the guest's agent in the background; an unreachable guest gets them at
    /// its next start.
    pub(super) fn send_settings(&self, id: InstanceId) {
        let Some(agent) = self.live(id).and_then(|_| self.agent_address(id)) else { return };
        let path = self.shared.config.layout.etc(id).join(CONFIG_FILE);
        let Ok(settings) = fs::read(path) else { return };
        tokio::spawn(async move {
            if let Err(error) = agent_stream::send_settings(&agent, &settings).await {
                tracing::warn!(task.id = %id, %error, "cannot send new settings to the guest's agent");
            }
        });
    }
}

/// Writes the disk with our executable unless it is there, and gives its name. Machines that run
/// keep the one that they were started with.
fn agent_disk(program: &Path, root: &Path) -> io::Result<String> {
    let about = fs::metadata(program)?;
    // Another build is another disk, be it older or newer.
    let name =
        format!("{AGENT_DISK}{:x}-{:x}-{:x}.img", about.len(), about.mtime(), about.mtime_nsec());
    if root.join(&name).exists() {
        return Ok(name);
    }
    write_agent_disk(program, &root.join(&name))?;
    for entry in fs::read_dir(root)? {
        let other = entry?.file_name();
        let other = other.to_string_lossy();
        if other.starts_with(AGENT_DISK) && other != name {
            fs::remove_file(root.join(&*other))?;
        }
    }
    Ok(name)
}

/// How the machine boots this time.
fn boot(
    disks: &Disks,
    dir: &MachineDir,
    machine: &Machine,
    meta: &ImageMeta,
) -> Result<Boot, String> {
    if let Some(kernel) = &meta.kernel {
        let now = match kernel.when {
            KernelWhen::Always => true,
            // From then on its own boot loader counts: it may have another kernel by then.
            KernelWhen::FirstBoot => !machine.boots_itself,
        };
        if now {
            let file = |name: &str| format!("../../layers/{}/{name}", machine.base);
            let initrd = disks.layer_dir(&machine.base).join(INITRD_FILE).exists();
            return Ok(Boot::Kernel {
                kernel: file(KERNEL_FILE).into(),
                initrd: initrd.then(|| file(INITRD_FILE).into()),
                cmdline: kernel.cmdline.clone(),
            });
        }
    }
    match meta.firmware {
        Firmware::Bios => Ok(Boot::Bios),
        Firmware::Uefi => {
            let missing =
                "its image boots by UEFI, and this node has no OVMF: apt-get install ovmf";
            let (code, variables) = uefi().ok_or(missing)?;
            let own = dir.path().join(UEFI_VARIABLES);
            if !own.exists() {
                let half = own.with_extension("new");
                let copied = fs::copy(variables, &half).and_then(|_| fs::rename(&half, &own));
                copied.map_err(|error| error.to_string())?;
            }
            Ok(Boot::Uefi { code })
        }
    }
}

/// The firmware's program and its variables as they are at first.
fn uefi() -> Option<(OsString, OsString)> {
    let names = [("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"), ("OVMF_CODE.fd", "OVMF_VARS.fd")];
    UEFI_DIRS
        .iter()
        .flat_map(|dir| {
            names.map(|(code, vars)| (Path::new(dir).join(code), Path::new(dir).join(vars)))
        })
        .find_map(|(code, variables)| {
            (code.exists() && variables.exists()).then(|| (code.into(), variables.into()))
        })
}

/// Lets QEMU's user have what it writes, and read its seed.
fn give_files(dir: &MachineDir, disk: &str, user: Option<u32>) -> io::Result<()> {
    let run = dir.path().join(RUN_DIR);
    match fs::DirBuilder::new().mode(0o700).create(&run) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    for (name, mode) in [(disk, 0o600), (SEED, 0o400), (UEFI_VARIABLES, 0o600), (RUN_DIR, 0o700)] {
        let path = dir.path().join(name);
        if !path.exists() {
            continue;
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        if user.is_some() {
            chown(&path, user, user)?;
        }
    }
    Ok(())
}

/// Returns the group that a process without root needs to open `/dev/kvm`.
fn kvm_group(accel: VmAccel) -> Option<u32> {
    let about = fs::metadata("/dev/kvm").ok().filter(|_| accel == VmAccel::Kvm)?;
    (about.mode() & 0o060 == 0o060).then(|| about.gid())
}

fn spawn(executable: &OsString, words: &[OsString], dir: &MachineDir) -> io::Result<Child> {
    let log = File::create(dir.path().join(QEMU_LOG))?;
    let mut command = Command::new(executable);
    command.args(words).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn()
}

/// QEMU's own last line.
fn last_words(dir: &MachineDir) -> String {
    let text = fs::read(dir.path().join(QEMU_LOG)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let line: String = line.trim_start_matches("qemu-system-x86_64: ").chars().take(400).collect();
    match vfio::explain(&text) {
        Some(advice) => format!("{line} ({advice})"),
        None => line,
    }
}
