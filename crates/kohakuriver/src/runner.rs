//! `kohakuriver runner`: the node process of a computer.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kohakuriver_model::image::USUAL_REGISTRIES;
use kohakuriver_model::{NodeName, ReferenceError, Registry, RepositoryPattern};
use kohakuriver_runner::{
    ContainerSettings, DataDirLock, MachineSettings, Runner, RunnerConfig, lock_data_dir,
};
use kohakuriver_runner_link::client::HostAddress;
use kohakuriver_runner_link::enroll::{EnrollError, enroll};
use kohakuriver_runner_link::pki::RunnerIdentity;
use kohakuriver_runner_link::token::JoinToken;

use kohakuriver_vm::accel::AccelWish;
use kohakuriver_vm::network::user::Outward;
use kohakuriver_vm::network::{BridgeName, Prefix, Subnet};

use crate::exit::{Exit, FAILED, NOT_READY, REFUSED, USAGE};
use crate::host::{host_name, runtime};
use crate::{findings, logging, paths, signals};

/// Time between SIGTERM and SIGKILL for an instance that is being stopped.
const STOP_GRACE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kohakuriver node token create          on the host: prints a token
  kohakuriver runner --join TOKEN        on this computer, the first time
  kohakuriver runner                     afterwards")]
pub struct RunnerArgs {
    /// Join a cluster with a token from 'kohakuriver node token create'.
    #[arg(long, value_name = "TOKEN", env = "KOHAKURIVER_JOIN_TOKEN", hide_env_values = true)]
    join: Option<JoinToken>,
    /// Leave the current cluster and join again with the token.
    #[arg(long, requires = "join")]
    rejoin: bool,
    /// Host and port to connect to instead of the token's.
    #[arg(long, value_name = "HOST:PORT", requires = "join")]
    address: Option<HostAddress>,
    /// Name of this node [default: the computer's host name].
    #[arg(long, value_name = "NAME")]
    name: Option<NodeName>,
    #[command(flatten)]
    places: Places,
}

/// The runner's directories, engine and backends.
#[derive(Debug, clap::Args)]
pub struct Places {
    /// Data directory [default: /var/lib/kohakuriver as root].
    #[arg(long, value_name = "DIR", env = "KOHAKURIVER_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Storage shared by all nodes, with shared_data as /shared in VPSes [default: DATA_DIR/shared].
    #[arg(long, value_name = "DIR", env = "KOHAKURIVER_SHARED_DIR")]
    pub shared_dir: Option<PathBuf>,
    /// Socket of the Docker engine [default: DOCKER_HOST's, or /var/run/docker.sock].
    #[arg(long, value_name = "SOCKET")]
    pub docker_socket: Option<PathBuf>,
    #[command(flatten)]
    containers: Containers,
    #[command(flatten)]
    machines: Machines,
}

/// The isolation of containers on the node; docs/concepts/containment.md lists the guarantees.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Containers")]
struct Containers {
    /// Docker network and bridge of the containers.
    #[arg(long, value_name = "NAME", default_value_t = BridgeName::of_containers(), env = "KOHAKURIVER_CONTAINER_NETWORK")]
    container_network: BridgeName,
    /// Subnet of the containers' addresses [default: chosen by Docker].
    #[arg(long, value_name = "PREFIX", env = "KOHAKURIVER_CONTAINER_SUBNET")]
    container_subnet: Option<Subnet>,
    /// Addresses that containers cannot connect to; repeatable.
    #[arg(long, value_name = "PREFIX")]
    container_deny: Vec<Prefix>,
    /// Disable set-user-id programs such as sudo and su in new VPSes.
    #[arg(long)]
    no_new_privileges: bool,
    /// Let operators create VPSes that are root of this node.
    #[arg(long)]
    allow_privileged: bool,
    /// Let operators mount this path, and paths below it, into VPSes; repeatable.
    #[arg(long, value_name = "PATH")]
    allow_mount: Vec<PathBuf>,
    /// Registries that users can pull images from, as HOST or HOST:PORT; repeatable. 'none' allows no
    /// registry.
    #[arg(
        long, value_name = "REGISTRY", value_delimiter = ',', value_parser = registry,
        default_values = USUAL_REGISTRIES, env = "KOHAKURIVER_ALLOW_REGISTRY"
    )]
    allow_registry: Vec<Option<Registry>>,
    /// Repository, or NAMESPACE/*, of local images that users can use; these are never pulled;
    /// repeatable.
    #[arg(
        long,
        value_name = "REPOSITORY",
        value_delimiter = ',',
        env = "KOHAKURIVER_ALLOW_LOCAL_IMAGE"
    )]
    allow_local_image: Vec<RepositoryPattern>,
    /// Image of the default environment, pulled if the node does not have it [default: built from the
    /// distribution's packages].
    #[arg(long, value_name = "IMAGE")]
    default_image: Option<String>,
}

/// Parses a registry, or `none`.
fn registry(text: &str) -> Result<Option<Registry>, ReferenceError> {
    if text == "none" { Ok(None) } else { text.parse().map(Some) }
}

impl Containers {
    fn settings(&self) -> ContainerSettings {
        ContainerSettings {
            network: self.container_network.clone(),
            subnet: self.container_subnet,
            denied: self.container_deny.clone(),
            no_new_privileges: self.no_new_privileges,
            allow_privileged: self.allow_privileged,
            allow_mounts: self.allow_mount.clone(),
            registries: self.allow_registry.iter().flatten().cloned().collect(),
            local_images: self.allow_local_image.clone(),
            default_image: self.default_image.clone(),
        }
    }
}

/// The virtual machine settings of the node.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Virtual machines")]
struct Machines {
    /// Accelerator; auto uses KVM if a test guest runs under it.
    #[arg(long, value_name = "auto|kvm|tcg", default_value = "auto", env = "KOHAKURIVER_VM_ACCEL")]
    vm_accel: AccelWish,
    /// Time in seconds for a guest to power off before it is killed.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    vm_stop_grace: u64,
    /// Time in seconds for a guest to boot.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    vm_boot_limit: u64,
    /// Bridge of the virtual machines.
    #[arg(long, value_name = "NAME", default_value_t, env = "KOHAKURIVER_VM_BRIDGE")]
    vm_bridge: BridgeName,
    /// Subnet of the virtual machines' addresses.
    #[arg(long, value_name = "PREFIX", default_value_t, env = "KOHAKURIVER_VM_SUBNET")]
    vm_subnet: Subnet,
    /// Without root: let guests connect to everything this user can, including loopback.
    #[arg(long)]
    vm_open_network: bool,
}

impl Machines {
    fn settings(&self) -> MachineSettings {
        MachineSettings {
            accel: self.vm_accel,
            bridge: self.vm_bridge.clone(),
            subnet: self.vm_subnet,
            outward: if self.vm_open_network { Outward::Open } else { Outward::Closed },
            stop_grace: Duration::from_secs(self.vm_stop_grace),
            boot_limit: Duration::from_secs(self.vm_boot_limit),
        }
    }
}

impl Places {
    pub fn root(&self) -> PathBuf {
        paths::absolute(paths::data_dir(self.data_dir.clone()))
    }

    pub fn runner_dir(&self) -> PathBuf {
        self.root().join("runner")
    }

    pub fn config(&self) -> Result<RunnerConfig, Exit> {
        let executable = std::env::current_exe()
            .map_err(|error| Exit::from_error(NOT_READY, &error).hint("is /proc mounted?"))?;
        let socket = self.docker_socket.clone().or_else(|| {
            let given = std::env::var("DOCKER_HOST").ok()?;
            given.strip_prefix("unix://").map(PathBuf::from)
        });
        Ok(RunnerConfig {
            data_dir: self.runner_dir(),
            shared_dir: self
                .shared_dir
                .clone()
                .map_or_else(|| self.root().join("shared"), paths::absolute),
            executable,
            docker_socket: socket,
            stop_grace: STOP_GRACE,
            containers: self.containers.settings(),
            machines: self.machines.settings(),
        })
    }
}

pub fn run(args: RunnerArgs) -> Result<(), Exit> {
    logging::start();
    runtime()?.block_on(async {
        let shutdown = signals::shutdown().map_err(|error| Exit::from_error(FAILED, &error))?;
        let config = args.places.config()?;
        // Before joining, because another runner's membership must not be changed.
        let lock = lock(&config.data_dir)?;
        let identity = identity(&args, &config.data_dir).await?;
        let name = identity.node_name.clone();
        let host = identity.host_address.clone();
        let runner = start(config, identity, lock).await?;
        for line in findings::lines(&runner.inventory().await) {
            tracing::info!("{line}");
        }
        tracing::info!(node.name = %name, %host, "runner is up");
        runner.run(shutdown).await.map_err(|error| Exit::from_error(FAILED, &error))
    })
}

/// Returns this node's identity: the stored one, or a new one by joining.
async fn identity(args: &RunnerArgs, dir: &Path) -> Result<RunnerIdentity, Exit> {
    let known = RunnerIdentity::load(dir).map_err(|error| Exit::from_error(NOT_READY, &error))?;
    match (known, &args.join) {
        (Some(identity), Some(_)) if !args.rejoin => {
            tracing::info!(
                node.name = %identity.node_name,
                "this computer has joined already; the token was not used (--rejoin joins again)"
            );
            Ok(identity)
        }
        (Some(identity), None) => {
            if let Some(name) = args.name.as_ref().filter(|name| **name != identity.node_name) {
                tracing::warn!(
                    "this computer joined as '{}' and keeps that name; --name {name} was not used",
                    identity.node_name
                );
            }
            Ok(identity)
        }
        (_, Some(token)) => {
            let name = match &args.name {
                Some(name) => name.clone(),
                None => default_name()?,
            };
            join(token, args.address.as_ref(), &name, dir).await
        }
        (None, None) => Err(Exit::new(USAGE, "this computer has not joined a cluster yet").hint(
            "run kohakuriver node token create on the host, then kohakuriver runner --join TOKEN here",
        )),
    }
}

/// Returns this computer's host name, if it is valid for a node.
pub fn default_name() -> Result<NodeName, Exit> {
    let name = host_name();
    name.parse()
        .map_err(|error| Exit::from_error(USAGE, &error).hint("give this node a name with --name"))
}

pub async fn join(
    token: &JoinToken,
    address: Option<&HostAddress>,
    name: &NodeName,
    dir: &Path,
) -> Result<RunnerIdentity, Exit> {
    let now_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    enroll(token, address, name, dir, now_ms).await.map_err(|error| {
        let exit = Exit::from_error(REFUSED, &error);
        match error {
            EnrollError::Refused { hint, .. } => exit.hint(hint),
            EnrollError::Link(_) => exit.hint(
                "check that the host runs and that this computer can connect to it; --address HOST:PORT uses another address",
            ),
            EnrollError::Frame(_) | EnrollError::Pki(_) => exit,
        }
    })
}

fn make_private_dir(dir: &Path) -> Result<(), Exit> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| {
        Exit::new(NOT_READY, format!("cannot create the data directory {}: {error}", dir.display()))
            .hint("run as root, or use a writable --data-dir")
    })
}

/// Locks the data directory for this process.
pub fn lock(dir: &Path) -> Result<DataDirLock, Exit> {
    make_private_dir(dir)?;
    lock_data_dir(dir).map_err(|error| {
        Exit::from_error(NOT_READY, &error)
            .hint("a runner may be running already; stop it or use another --data-dir")
    })
}

pub async fn start(
    config: RunnerConfig,
    identity: RunnerIdentity,
    lock: DataDirLock,
) -> Result<Runner, Exit> {
    let dir = config.data_dir.clone();
    Runner::start(config, identity, lock).await.map_err(|error| {
        Exit::from_error(NOT_READY, &error).hint(format!("check {}", dir.display()))
    })
}
