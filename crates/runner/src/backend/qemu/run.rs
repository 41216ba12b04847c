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

use kohakuriver_agent::{AgentConfig, CONFIG_FILE, GUEST_SECRET_FILE, HOST_KEY_FILE};
use kohakuriver_model::{TaskId, VmAccel};
use kohakuriver_vm::accel::{Choice, Qemu};
use kohakuriver_vm::command::{self, Boot, RUN_DIR, SEED, UEFI_VARIABLES};
use kohakuriver_vm::disk::Disks;
use kohakuriver_vm::image::{Firmware, INITRD_FILE, ImageMeta, KERNEL_FILE, KernelWhen};
use kohakuriver_vm::launch::Launch;
use kohakuriver_vm::seed::{Seed, write_agent_disk};
use kohakuriver_vm::vfio;
use tokio::process::{Child, Command};

use super::live::{Live, Started};
use super::record::{Machine, MachineDir, STARTED};
use super::{QemuBackend, files};
use crate::agent_files;
use crate::agent_stream::{self, AgentAddress};
use crate::backend::{BackendError, Change};

/// A longer chain of layers is made one at the next start.
const MOST_LAYERS: usize = 8;
const QEMU_LOG: &str = "qemu.log";
const AGENT_DISK: &str = "agent.img";
const UEFI_DIRS: [&str; 4] =
    ["/usr/share/OVMF", "/usr/share/edk2/ovmf", "/usr/share/edk2/x64", "/usr/share/qemu"];

impl QemuBackend {
    pub(super) async fn start_machine(&self, id: TaskId) -> Result<(), BackendError> {
        if self.live(id).is_some() {
            return Ok(());
        }
        let (qemu, choice) = self.shared.host.ready().await?;
        let dir = self.dir(id);
        let refused = |reason: String| BackendError::Refused { by: "QEMU", act: "start", reason };
        let Some(mut machine) = dir.machine().map_err(files)? else {
            return Err(refused("it has no disk".to_owned()));
        };
        self.ready_disk(&dir, &mut machine).await?;
        let outcome = self.launch(id, &dir, &mut machine, &qemu, &choice).await;
        match outcome {
            Ok(started) => {
                machine.boots_itself = true;
                dir.write_machine(&machine).map_err(files)?;
                self.follow(id, started);
                Ok(())
            }
            Err(error) => {
                self.clear_away(id).await;
                Err(error)
            }
        }
    }

    /// The disk in one piece, and only that.
    async fn ready_disk(
        &self,
        dir: &MachineDir,
        machine: &mut Machine,
    ) -> Result<(), BackendError> {
        self.settle(dir, machine).await?;
        let disks = &self.shared.disks;
        disks.drop_old_disks(dir.path(), &machine.disk).map_err(files)?;
        if disks.chain(&machine.layer).map_err(super::disk)?.len() > MOST_LAYERS {
            disks.flatten(dir.path(), &machine.disk, &machine.base).await.map_err(super::disk)?;
            machine.layer.clone_from(&machine.base);
            dir.write_machine(machine).map_err(files)?;
        }
        Ok(())
    }

    async fn launch(
        &self,
        id: TaskId,
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
        let agent_disk = machine.agent.then(|| self.agent_disk()).transpose().map_err(files)?;
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
    fn follow(&self, id: TaskId, started: Started) {
        let live = Arc::clone(&started.live);
        self.lock().insert(id, Arc::clone(&live));
        let (this, left) = (self.clone(), self.shared.left.clone());
        tokio::spawn(async move {
            let clear = || async {
                this.clear_away(id).await;
                let mut lives = this.lock();
                if lives.get(&id).is_some_and(|newest| Arc::ptr_eq(newest, &live)) {
                    lives.remove(&id);
                }
            };
            if left.run_until_cancelled(started.follow(clear)).await.is_some() {
                // Nobody may be listening.
                let _ = this.shared.events.send(Change::Instance(id));
            }
        });
        let _ = self.shared.events.send(Change::Instance(id));
    }

    /// Gives back what a machine that does not run had around it.
    pub(super) async fn clear_away(&self, id: TaskId) {
        self.shared.host.net.unplug(id).await;
        self.shared.host.devices.give_back(id).await;
        let _ = fs::remove_file(self.dir(id).path().join(SEED));
    }

    /// Takes up what an earlier runner left: running machines, and what dead ones had.
    pub async fn adopt(&self) {
        let ids = self.ids().unwrap_or_else(|error| {
            tracing::warn!(%error, "the machines of this node cannot be listed");
            Vec::new()
        });
        let mut living = Vec::new();
        for id in ids {
            let dir = self.dir(id);
            if !dir.started().is_some_and(|(process, _)| process.is_alive()) {
                continue;
            }
            living.push(id);
            if let Ok(Some(mut machine)) = dir.machine()
                && let Err(error) = self.settle(&dir, &mut machine).await
            {
                tracing::warn!(task_id = %id, %error, "a snapshot that was cut off is not finished");
            }
            match Live::connect(dir, None).await {
                Ok(started) => {
                    tracing::info!(task_id = %id, "a running machine is taken up");
                    self.follow(id, started);
                }
                // It runs and cannot be spoken to: it is left alone, and seen to run.
                Err(error) => {
                    tracing::warn!(task_id = %id, error, "a running QEMU does not answer");
                }
            }
        }
        self.shared.host.sweep(&living).await;
    }

    fn write_seed(&self, id: TaskId, dir: &MachineDir, network_config: &str) -> io::Result<()> {
        let etc = self.shared.config.layout.etc(id);
        let config = AgentConfig::read(&etc).map_err(io::Error::other)?;
        let mut settings = Vec::new();
        for name in [CONFIG_FILE, HOST_KEY_FILE, GUEST_SECRET_FILE] {
            settings.push((name.to_owned(), fs::read(etc.join(name))?));
        }
        let seed = Seed {
            instance_id: id.to_string(),
            hostname: config.hostname,
            authorized_keys: config.authorized_keys,
            network_config: network_config.to_owned(),
            settings,
        };
        seed.write(&dir.path().join(SEED))
    }

    /// The disk with our executable, as QEMU finds it from a machine's directory.
    fn agent_disk(&self) -> io::Result<OsString> {
        let path = self.shared.disks.root().join(AGENT_DISK);
        write_agent_disk(&self.shared.config.executable, &path)?;
        Ok(format!("../../{AGENT_DISK}").into())
    }

    pub(super) fn agent_address(&self, id: TaskId) -> Option<AgentAddress> {
        let machine = self.dir(id).machine().ok()??;
        if !machine.agent {
            return None;
        }
        let secret = agent_files::guest_secret(&self.shared.config.layout, id).ok()?;
        let address = self.shared.host.net.agent(&machine)?;
        Some(AgentAddress::Guest { address, secret })
    }

    /// Best effort: a guest that cannot be reached now has them at its next start.
    pub(super) async fn send_settings(&self, id: TaskId) {
        let Some(agent) = self.live(id).and_then(|_| self.agent_address(id)) else { return };
        let path = self.shared.config.layout.etc(id).join(CONFIG_FILE);
        let Ok(settings) = fs::read(path) else { return };
        if let Err(error) = agent_stream::send_settings(&agent, &settings).await {
            tracing::warn!(task_id = %id, %error, "the guest's agent did not take new settings");
        }
    }
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
                fs::copy(variables, &own).map_err(|error| error.to_string())?;
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

/// What a process that is not root needs to open `/dev/kvm`.
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
