//! Types of the HTTP API, shared by host and command line.
//!
//! Paths and field names are those of the original system, so that its clients continue to work;
//! new fields follow the same style. Ids are strings in JSON. Times are ISO 8601 with a zone.
//! Unknown request fields are ignored, because existing clients send fields that have no meaning
//! here.

pub mod account;
pub mod error;
mod error_codes;
pub mod fs;
pub mod node;
pub mod sharing;
pub mod snapshot;
pub mod task;
pub mod vm;
pub mod vps;

pub use account::{
    AddUserKey, AuditEntry, AuditVerified, AuthStatus, ChangePassword, CreateGroup,
    CreateInvitation, CreateReset, CreateToken, CreatedToken, Group, GroupQuotaUse, Held,
    Invitation, LoggedIn, Login, Member, Note, OidcHandover, OidcSession, PasswordReset, Quota,
    QuotaUse, Register, Rejected, ResetPassword, Secret, Token, UpdateGroup, UpdateUser, User,
    UserKey,
};
pub use account::{AskSshCertificate, SshCertificate, handover_code};
pub use error::ErrorBody;
pub use error_codes::{ERROR_CODES, ErrorCode, error_code};
pub use fs::{
    FsContent, FsDone, FsEntry, FsList, FsMkdir, FsRename, FsRenamed, FsStat, FsWrite, FsWritten,
};
pub use node::{
    GpuInfo, HealthSample, JoinToken, JoinTokenRequest, LabelChanges, Node, NodeHealth, VfioGpu,
};
pub use sharing::{
    Assigned, Assignment, Assignments, Received, ReceivedOffer, ReceivedShare, SetOwner, SetShare,
    TakeShare,
};
pub use snapshot::{LatestSnapshot, Snapshot, SnapshotCreated, SnapshotList, SnapshotsDeleted};
pub use task::{Assignee, Share, Task};
pub use vm::{
    VmImage, VmImages, VmInstance, VmInstanceDeleted, VmInstances, VmNode, VmSummary, VmTask,
};
pub use vps::{
    AssignedNode, CreateVps, CreatedVps, Event, Message, RunnerResponse, SshKey, UpdateVps,
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Response of `GET /api/auth/ca`: the CA that signed this host's certificate.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CaCertificate {
    pub ca_pem: String,
    /// SHA-256 of the certificate in hexadecimal.
    pub fingerprint: String,
}

/// Response of `GET /api/health`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Health {
    pub status: String,
    pub version: String,
    pub nodes_online: u32,
    pub nodes_total: u32,
    pub vps_running: u32,
    /// Latest state of every node, in the original API's form: each value is a list of samples.
    #[serde(default)]
    pub nodes: Vec<Vec<Node>>,
    #[serde(default)]
    pub aggregate: Vec<HealthAggregate>,
    /// Directory of the host's files on its machine; only admins receive it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<String>,
}

impl Health {
    /// Returns a response that contains the version and no information about the cluster.
    pub fn alive(version: &str) -> Self {
        Self {
            status: "ok".to_owned(),
            version: version.to_owned(),
            nodes_online: 0,
            nodes_total: 0,
            vps_running: 0,
            nodes: Vec::new(),
            aggregate: Vec::new(),
            data_dir: None,
        }
    }
}

/// Totals over all nodes of the cluster.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HealthAggregate {
    pub total_nodes: u32,
    pub online_nodes: u32,
    pub total_cores: u32,
    pub total_mem_bytes: u64,
    pub used_mem_bytes: u64,
    pub avg_cpu_percent: f32,
    pub avg_mem_percent: f32,
    pub max_avg_cpu_temp: f32,
    pub max_max_cpu_temp: f32,
    pub last_updated: String,
}
