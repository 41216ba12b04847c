//! Opens sessions inside instances. SSH gateway, terminals, exec, forwards and files all use it.

use kohakuriver_model::{BackendKind, Status};
use kohakuriver_runner_link::protocol::StreamTarget;
use kohakuriver_store::InstanceRow;

use crate::access::{Caller, Permission, authorize};
use crate::host::App;
use crate::instances::{self, InstanceError, display_name};
use crate::limits::{Full, Holder, Limit};
use crate::present;
use crate::sessions::registry::{Guard, Right};
use crate::sessions::streams::{self, InstanceStream, StreamError};

/// The reasons for which a session is refused, in one line for the user.
#[derive(Debug, thiserror::Error)]
pub enum OpenSessionError {
    #[error(transparent)]
    Instance(#[from] InstanceError),
    #[error("VPS {name} is {status}")]
    NotRunning { name: String, status: Status, backend: BackendKind },
    #[error("VPS {name} is paused")]
    Paused { name: String },
    #[error("VPS {name} was created without --ssh")]
    NoSsh { name: String },
    #[error("your account has {MAX_OF_ONE} open streams, the limit of an account")]
    TooMany,
    #[error("the host has {MAX_STREAMS} open streams, its limit")]
    Full,
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl OpenSessionError {
    /// Returns the command to run next.
    pub fn hint(&self) -> Option<String> {
        let plain = |name: &str| name.trim_matches('\'').to_owned();
        match self {
            Self::NotRunning { name, status: Status::Pending | Status::Assigning, backend } => {
                let name = plain(name);
                let watch = format!("kohakuriver vps status {name} --watch shows its progress");
                Some(match backend {
                    BackendKind::Docker => watch,
                    BackendKind::Qemu => {
                        format!("{watch}, kohakuriver terminal attach {name} shows its console")
                    }
                })
            }
            Self::NotRunning { name, .. } => {
                Some(format!("kohakuriver vps restart {}", plain(name)))
            }
            Self::Paused { name } => Some(format!("kohakuriver vps resume {}", plain(name))),
            Self::NoSsh { name } => {
                Some(format!("kohakuriver connect {} needs no SSH", plain(name)))
            }
            Self::Stream(StreamError::NodeOffline { .. } | StreamError::NoConnection { .. }) => {
                Some("kohakuriver node list".to_owned())
            }
            Self::TooMany => {
                Some("close terminals, forwards or copies that are not needed".to_owned())
            }
            Self::Full => Some("try again later".to_owned()),
            Self::Instance(_) | Self::Stream(_) => None,
        }
    }

    /// Returns error and hint in one line.
    pub fn line(&self) -> String {
        match self.hint() {
            Some(hint) => format!("{self}; {hint}"),
            None => self.to_string(),
        }
    }

    /// Returns whether the request was at fault, rather than the node or the host.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Instance(_)
            | Self::NotRunning { .. }
            | Self::Paused { .. }
            | Self::NoSsh { .. } => true,
            Self::TooMany | Self::Full | Self::Stream(_) => false,
        }
    }
}

/// The bound on the streams of all callers together.
const MAX_STREAMS: usize = 8192;
/// The bound on those of one account: a stalled stream may hold some 400 KiB of the host's memory.
const MAX_OF_ONE: usize = 256;

/// Returns the limit on streams into instances.
pub fn stream_limit() -> Limit {
    Limit::new(MAX_STREAMS, MAX_OF_ONE)
}

/// An open session: the stream, and the registration that ends it when the right is revoked.
#[derive(Debug)]
pub struct OpenSession {
    pub stream: InstanceStream,
    pub guard: Guard,
}

/// Opens a stream into the instance that `text` names.
pub async fn open_session(
    app: &App,
    caller: &Caller,
    text: &str,
    target: StreamTarget,
) -> Result<OpenSession, OpenSessionError> {
    let id = instances::find_to_enter(app, caller, text).await?;
    // Registered before the right is checked, so that a revocation from now on is not missed.
    let mut guard = app.sessions.register(caller, Right::Enter(id));
    let access =
        authorize(app, caller, Permission::Enter, id).await.map_err(instances::denied(text))?;
    let row = instances::get(app, &access).await?;
    require_open(app, &row, &target)?;
    guard.hold(app.streams.take(Holder::of(caller)).map_err(|full| match full {
        Full::Holder => OpenSessionError::TooMany,
        Full::All => OpenSessionError::Full,
    })?);
    let node = (&row.node_id, row.node_name.as_str());
    let what = describe(&target);
    let Some(opened) = guard.during(streams::open(app, &access, node, target)).await else {
        return Err(InstanceError::Unknown(text.to_owned()).into());
    };
    let stream = opened?;
    if let Some(what) = what {
        guard.record_begin(what, id);
    }
    Ok(OpenSession { stream, guard })
}

/// Refuses a caller that may not open a session, where authentication is on, before it is given a
/// socket that could reveal more.
pub async fn admit(app: &App, caller: &Caller, text: &str) -> Result<(), OpenSessionError> {
    if app.config.auth.enabled {
        let id = instances::find_to_enter(app, caller, text).await?;
        authorize(app, caller, Permission::Enter, id).await.map_err(instances::denied(text))?;
    }
    Ok(())
}

/// Checks that the instance accepts sessions now, whichever account asks.
pub fn require_open(
    app: &App,
    row: &InstanceRow,
    target: &StreamTarget,
) -> Result<(), OpenSessionError> {
    let name = display_name(row.id, &row.spec);
    let status = present::status_of(app, row);
    if *target == StreamTarget::Ssh && row.spec.ssh.is_none() {
        return Err(OpenSessionError::NoSsh { name });
    }
    let backend = row.spec.backend();
    match status {
        // A lost instance may well run; an unreachable one is reported by its stream.
        Status::Running | Status::Lost => Ok(()),
        // A VM has a console from its first moment on: an owner can watch it boot, and repair one
        // that does not finish booting.
        Status::Assigning if backend == BackendKind::Qemu && *target == StreamTarget::Attach => {
            Ok(())
        }
        // Its agent is frozen too: an error now is better than no answer.
        Status::Paused => Err(OpenSessionError::Paused { name }),
        Status::PendingApproval
        | Status::Rejected
        | Status::Pending
        | Status::Assigning
        | Status::Completed
        | Status::Failed
        | Status::Killed
        | Status::KilledOom
        | Status::Stopped => Err(OpenSessionError::NotRunning { name, status, backend }),
    }
}

/// Returns the target's name in the audit log; `None` for a target that is no session.
fn describe(target: &StreamTarget) -> Option<String> {
    Some(match target {
        StreamTarget::Ssh => "ssh".to_owned(),
        StreamTarget::Tcp { port } => format!("forward tcp {port}"),
        StreamTarget::Udp { port } => format!("forward udp {port}"),
        StreamTarget::Exec => "exec".to_owned(),
        StreamTarget::Attach => "attach".to_owned(),
        StreamTarget::Session => "terminal".to_owned(),
        StreamTarget::Watch => "watch".to_owned(),
        StreamTarget::Files => "files".to_owned(),
        StreamTarget::Ping | StreamTarget::Settings => return None,
    })
}
