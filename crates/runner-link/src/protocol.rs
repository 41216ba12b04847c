//! The typed messages of the link.
//!
//! Control connection, after the TLS handshake:
//!
//! ```text
//!  runner                                host
//!    Hello {versions, inventory}  ---->
//!                                 <----  Welcome {version, ..} | Refused
//!    Observation* SyncDone        ---->
//!                                 <----  Order* SyncDone
//!    Observation, Progress,       ---->
//!    Heartbeat (every 5 s)        ---->  HeartbeatAck
//!                                 <----  Order, DialData, InstanceCommand, NodeQuery
//!    InstanceReply, NodeReply     ---->
//! ```
//!
//! Both sides may lose the connection at any point; after the next `Hello` each sends its whole state
//! again, so no message needs a response to be safe.
//!
//! Data connections are dialled by the runner ahead of need and wait in a pool at the host. The
//! host takes one, writes [`StreamOpen`], reads [`StreamOpened`], and from then on both sides
//! copy bytes. When the pool is empty the host asks with [`ToRunner::DialData`]. The certificate
//! says whose connection it is, so no token is needed to match them.

pub use kohakuriver_agent_protocol::StreamTarget;
use kohakuriver_model::bounds::{
    MAX_MESSAGE_BYTES, MAX_REMARK_BYTES, MAX_SNAPSHOT_MESSAGE_BYTES, MAX_SNAPSHOT_NAME_BYTES,
    MAX_WORD_BYTES, bound_line, bound_text,
};
use kohakuriver_model::{
    FailureCode, InstanceId, InstanceSpec, Intent, Inventory, Metrics, Observation, VmImageName,
};
use serde::{Deserialize, Serialize};

pub const ALPN_ENROLL: &[u8] = b"kr-enroll/1";
pub const ALPN_CONTROL: &[u8] = b"kr-ctl/1";
pub const ALPN_DATA: &[u8] = b"kr-data/1";

/// The versions of the control protocol this build speaks, oldest and newest.
pub const VERSIONS: (u32, u32) = (4, 4);

/// From runner to host on the control connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum ToHost {
    Hello(Hello),
    /// The state of an instance. Sent for every instance after the hello, then on every change.
    Observation {
        task_id: InstanceId,
        observation: Observation,
    },
    /// All instances have been reported once since the hello.
    SyncDone,
    Heartbeat {
        metrics: Metrics,
    },
    /// The node changed: a Docker engine started or stopped, a GPU appeared.
    Inventory {
        inventory: Inventory,
    },
    /// A requested data connection could not be opened.
    DialFailed {
        error: String,
    },
    /// Asks for a fresh certificate for the same node.
    RenewCertificate {
        csr_pem: String,
    },
    /// The result of a [`ToRunner::InstanceCommand`].
    #[serde(rename = "answer")]
    InstanceReply {
        request: u64,
        answer: InstanceReply,
    },
    /// The result of a [`ToRunner::NodeQuery`].
    #[serde(rename = "node_answer")]
    NodeReply {
        request: u64,
        answer: NodeReply,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    pub oldest_version: u32,
    pub newest_version: u32,
    pub runner_version: String,
    /// The runner's clock, milliseconds since 1970; the host shows how far it is off.
    pub now_ms: i64,
    pub inventory: Inventory,
}

/// From host to runner on the control connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum ToRunner {
    Welcome {
        version: u32,
        node_name: String,
        now_ms: i64,
    },
    /// The host rejects this runner, which should back off before it retries.
    Refused {
        reason: String,
    },
    Order(Box<Order>),
    /// Every instance that this node should have has been ordered once since the hello.
    SyncDone,
    HeartbeatAck,
    /// Dial this many data connections now.
    DialData {
        count: u32,
    },
    Certificate {
        certificate_pem: String,
    },
    /// Runs one command on an instance, or asks about it; not a state to converge to. A command that is
    /// lost with the connection is not repeated: its caller gets the error that the node went away.
    #[serde(rename = "ask")]
    InstanceCommand {
        request: u64,
        task_id: InstanceId,
        #[serde(rename = "question")]
        command: InstanceCommand,
    },
    /// The same for the node itself rather than one instance's driver.
    #[serde(rename = "ask_node")]
    NodeQuery {
        request: u64,
        #[serde(rename = "question")]
        query: NodeQuery,
    },
}

/// A command or query about an instance's snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "question")]
pub enum InstanceCommand {
    /// Lists one page of snapshots.
    ListSnapshots {
        /// Only older ones than this tag. A runner that does not know it answers with all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<u64>,
    },
    /// Creates a snapshot and removes those beyond the instance's policy.
    CreateSnapshot {
        name: Option<String>,
        message: Option<String>,
    },
    DeleteSnapshot {
        tag: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum InstanceReply {
    /// Newest first.
    Snapshots {
        snapshots: Vec<Snapshot>,
        /// There are older ones, on the next page.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more: bool,
        /// Paths of the instance's disk that no snapshot has: a restore would lose what is in them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        outside: Vec<String>,
    },
    Created {
        snapshot: Snapshot,
    },
    Deleted,
    Failed {
        code: FailureCode,
        message: String,
        hint: Option<String>,
    },
}

/// A snapshot, as the node's engine has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The second since 1970 in which it was made; unique for its instance.
    pub tag: u64,
    pub name: Option<String>,
    pub message: String,
    /// Its total size, with the image below it.
    pub size_bytes: u64,
    /// The bytes it adds to the layers below it.
    pub own_bytes: u64,
    /// The disk of a living instance is built on it.
    pub in_use: bool,
}

/// A command or query about a node's VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "question")]
pub enum NodeQuery {
    /// The base images in shared storage.
    ListVmImages,
    /// The files that VMs have on this node, including VMs that the host has no row of.
    ListMachines,
    /// Removes all files of a VM. The host has no such instance and never will again; an instance
    /// that the runner's ledger still has is deleted by its driver, the only writer. A running VM is
    /// refused with `StartRefused`, unless by `force`.
    DeleteMachine { task_id: InstanceId, force: bool },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum NodeReply {
    VmImages { dir: String, images: Vec<VmImage> },
    Machines { dir: String, machines: Vec<Machine> },
    Deleted { freed_bytes: u64 },
    Failed { code: FailureCode, message: String, hint: Option<String> },
}

/// A base image of virtual machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmImage {
    pub name: VmImageName,
    /// Its disk's file, below the folder of all images.
    pub file: String,
    /// Its size in shared storage.
    pub size_bytes: u64,
    /// The size of the disk that a machine sees.
    pub virtual_bytes: u64,
    /// Milliseconds since 1970.
    pub modified_ms: i64,
}

/// The files of one virtual machine on its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub task_id: InstanceId,
    /// The size of its own files; base images and layers shared with other VMs are not counted.
    pub disk_bytes: u64,
    /// Names in its folder.
    pub files: Vec<String>,
    /// QEMU's, while it runs.
    pub pid: Option<u32>,
    /// The runner's ledger has it.
    pub known: bool,
}

/// The intent and specification of one instance of this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    pub task_id: InstanceId,
    pub intent: Intent,
    pub spec: InstanceSpec,
}

/// First frame on a data connection, from the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamOpen {
    pub task_id: InstanceId,
    pub target: StreamTarget,
}

/// The runner's response; after `Opened` only bytes follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "result")]
pub enum StreamOpened {
    Opened,
    Refused { error: String },
}

/// Snapshots of one answer. At their bounds they fill two thirds of a frame.
pub const SNAPSHOT_PAGE: usize = 150;
/// Paths of volumes beside a disk; a usual image has one or two.
const MAX_OUTSIDE: usize = 32;

impl InstanceReply {
    /// A page of an instance's snapshots, the newest of those before `before`.
    pub fn page(mut snapshots: Vec<Snapshot>, before: Option<u64>) -> Self {
        snapshots.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.tag));
        snapshots.retain(|snapshot| before.is_none_or(|before| snapshot.tag < before));
        let more = snapshots.len() > SNAPSHOT_PAGE;
        snapshots.truncate(SNAPSHOT_PAGE);
        Self::Snapshots { snapshots, more, outside: Vec::new() }.bounded()
    }

    /// Adds the paths that no snapshot has.
    #[must_use]
    pub fn with_outside(mut self, paths: Vec<String>) -> Self {
        if let Self::Snapshots { outside, .. } = &mut self {
            *outside = paths;
        }
        self.bounded()
    }

    /// Holds every text to its bound.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        match &mut self {
            Self::Snapshots { snapshots, outside, .. } => {
                snapshots.iter_mut().for_each(Snapshot::bound);
                outside.truncate(MAX_OUTSIDE);
                outside.iter_mut().for_each(|path| bound_line(path, MAX_WORD_BYTES));
            }
            Self::Created { snapshot } => snapshot.bound(),
            Self::Failed { message, hint, .. } => bound_failure(message, hint),
            Self::Deleted => {}
        }
        self
    }

    /// Creates the failure that replaces a reply that does not fit a message.
    pub fn too_large(bytes: usize) -> Self {
        let (code, message, hint) = too_large(bytes);
        Self::Failed { code, message, hint }
    }
}

impl NodeReply {
    /// Holds the texts of a failure to their bounds.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        if let Self::Failed { message, hint, .. } = &mut self {
            bound_failure(message, hint);
        }
        self
    }

    /// Creates the failure that replaces a reply that does not fit a message.
    pub fn too_large(bytes: usize) -> Self {
        let (code, message, hint) = too_large(bytes);
        Self::Failed { code, message, hint }
    }
}

impl Snapshot {
    fn bound(&mut self) {
        if let Some(name) = &mut self.name {
            bound_line(name, MAX_SNAPSHOT_NAME_BYTES);
        }
        bound_line(&mut self.message, MAX_SNAPSHOT_MESSAGE_BYTES);
    }
}

impl StreamOpened {
    /// A refusal whose text is held to its bound.
    pub fn refused(mut error: String) -> Self {
        bound_text(&mut error, MAX_REMARK_BYTES, true);
        Self::Refused { error }
    }
}

fn bound_failure(message: &mut String, hint: &mut Option<String>) {
    bound_text(message, MAX_MESSAGE_BYTES, true);
    if let Some(hint) = hint {
        bound_line(hint, MAX_REMARK_BYTES);
    }
}

fn too_large(bytes: usize) -> (FailureCode, String, Option<String>) {
    let message = format!("the node's response has {bytes} bytes, more than a message can hold");
    (FailureCode::Internal, message, Some("see the runner's log for its name".to_owned()))
}
