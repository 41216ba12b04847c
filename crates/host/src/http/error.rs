//! The common shape of errors, and each error's status.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use kohakuriver_api::ErrorBody;
use kohakuriver_model::{FailureCode, Refusal};
use kohakuriver_store::{CreateError, InvitationError, StoreError, UserError};

use crate::access::Denied;
use crate::accounts::{LoginError, PasswordError};
use crate::instances::InstanceError;
use crate::instances::validate::RequestError;
use crate::oidc::OidcError;
use crate::sessions::open::OpenSessionError;
use crate::sessions::streams::StreamError;

/// The code of an error, for the audit log.
#[derive(Clone, Debug)]
pub struct ErrorCode(pub String);

/// The longest error text of the framework, in bytes.
const MAX_TEXT: usize = 4096;

/// An error response.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        debug_assert!(kohakuriver_api::error_code(code).is_some(), "{code} is not documented");
        let body = ErrorBody { detail: detail.into(), code: code.to_owned(), hint: None };
        Self { status, body }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }

    pub fn unknown_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, "unknown_route", "Not Found")
            .hint("the API is described at /openapi.json")
    }

    pub fn wrong_method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", "Method Not Allowed")
    }

    pub fn foreign_page() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "foreign_origin",
            "this request came from a web page of another site, or through a host name that is not configured",
        )
        .hint("use the host's address or localhost")
    }

    /// A path without a policy.
    pub fn no_policy() -> Self {
        Self::new(StatusCode::FORBIDDEN, "no_policy", "no policy allows this path")
    }

    pub fn log_in() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "not_authenticated", "Not authenticated")
            .hint("log in: kohakuriver auth login")
    }

    pub(super) fn internal(what: &str, error: &dyn std::error::Error) -> Self {
        let mut chain = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            chain.push_str(": ");
            chain.push_str(&cause.to_string());
            source = cause.source();
        }
        tracing::error!(error = chain, "{what}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", what)
            .hint("the cause is in the host's log")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let code = ErrorCode(self.body.code.clone());
        let mut response = (self.status, Json(self.body)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(code);
        response
    }
}

/// Converts an error of the framework itself, such as for an invalid number in a path, to the
/// common shape.
pub async fn to_error_body(response: Response) -> Response {
    let status = response.status();
    let is_text = |value: &HeaderValue| value.as_bytes().starts_with(b"text/plain");
    let made_elsewhere = status.is_client_error()
        && response.extensions().get::<ErrorCode>().is_none()
        && response.headers().get(CONTENT_TYPE).is_some_and(is_text);
    if !made_elsewhere {
        return response;
    }
    let Ok(text) = axum::body::to_bytes(response.into_body(), MAX_TEXT).await else {
        return ApiError::new(status, "invalid_request", "the request is invalid").into_response();
    };
    let text = String::from_utf8_lossy(&text).into_owned();
    ApiError::new(status, "invalid_request", text).into_response()
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        let status = match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, "invalid_body", rejection.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_query", rejection.body_text())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::NotFound { .. } => {
                Self::new(StatusCode::NOT_FOUND, "not_found", error.to_string())
            }
            StoreError::Conflict { .. } => {
                Self::new(StatusCode::CONFLICT, "conflict", error.to_string())
            }
            StoreError::Stale => Self::new(StatusCode::CONFLICT, "stale", error.to_string())
                .hint("repeat the request"),
            StoreError::DiskFull => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk_full", error.to_string())
                    .hint("free space in the host's data directory")
            }
            StoreError::Inconsistent { .. } | StoreError::Driver(_) => {
                Self::internal("the database failed", &error)
            }
        }
    }
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        let text = denied.to_string();
        match denied {
            Denied::LogIn => Self::log_in(),
            Denied::Role { .. } => Self::new(StatusCode::FORBIDDEN, "role", text)
                .hint("kohakuriver auth whoami shows your role; an admin can change it"),
            Denied::Act { .. } => Self::new(StatusCode::FORBIDDEN, "not_yours", text),
            Denied::Hidden => Self::new(StatusCode::NOT_FOUND, "not_found", "there is no such VPS"),
            Denied::Store(error) => error.into(),
        }
    }
}

impl From<PasswordError> for ApiError {
    fn from(error: PasswordError) -> Self {
        match &error {
            PasswordError::Short | PasswordError::Long | PasswordError::Name(_) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", error.to_string())
            }
            PasswordError::Hash => Self::internal("hashing a password failed", &error),
        }
    }
}

impl From<UserError> for ApiError {
    fn from(error: UserError) -> Self {
        let text = error.to_string();
        match error {
            UserError::Unknown => Self::new(StatusCode::NOT_FOUND, "unknown_user", text)
                .hint("kohakuriver auth users"),
            UserError::NameTaken(_) => Self::new(StatusCode::CONFLICT, "name_taken", text),
            UserError::LastAdmin => Self::new(StatusCode::CONFLICT, "last_admin", text)
                .hint("make another account an admin first"),
            UserError::HasInstances(_) => Self::new(StatusCode::CONFLICT, "has_vps", text).hint(
                "delete them, give them to other accounts (kohakuriver vps give), or disable the account",
            ),
            UserError::Store(error) => error.into(),
        }
    }
}

impl From<LoginError> for ApiError {
    fn from(error: LoginError) -> Self {
        let text = error.to_string();
        match error {
            LoginError::Off => Self::new(StatusCode::SERVICE_UNAVAILABLE, "auth_off", text),
            LoginError::Wrong => Self::new(StatusCode::UNAUTHORIZED, "wrong_password", text),
            LoginError::Disabled => Self::new(StatusCode::FORBIDDEN, "disabled", text)
                .hint("an admin can enable it again"),
            LoginError::Slow(_) => Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_tries", text),
            LoginError::NoReset => Self::new(StatusCode::BAD_REQUEST, "no_reset", text)
                .hint("an admin can create another: kohakuriver auth user reset NAME"),
            LoginError::Invitation(InvitationError::User(error)) => error.into(),
            LoginError::Invitation(InvitationError::Unknown | InvitationError::Spent) => {
                Self::new(StatusCode::BAD_REQUEST, "invitation", text)
                    .hint("ask for another: kohakuriver auth invite")
            }
            LoginError::Password(error) => error.into(),
            LoginError::User(error) => error.into(),
            LoginError::Store(error) => error.into(),
        }
    }
}

impl From<OidcError> for ApiError {
    fn from(error: OidcError) -> Self {
        let (text, hint) = (error.to_string(), error.hint());
        let (status, code) = match error {
            OidcError::Off => (StatusCode::SERVICE_UNAVAILABLE, "oidc_off"),
            OidcError::Unknown => (StatusCode::BAD_REQUEST, "oidc_unknown"),
            OidcError::Refused(_) | OidcError::NoRole { .. } | OidcError::NoName => {
                (StatusCode::FORBIDDEN, "oidc_refused")
            }
            OidcError::Provider(_) => (StatusCode::BAD_GATEWAY, "oidc_provider"),
            OidcError::Login(error) => return error.into(),
        };
        let answer = Self::new(status, code, text);
        match hint {
            Some(hint) => answer.hint(hint),
            None => answer,
        }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let answer = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", error.to_string());
        match error {
            RequestError::KeyMode(_) => answer.hint("use disabled, none, upload or generate"),
            RequestError::Memory(_) => answer.hint("give bytes, or leave it out for no limit"),
            RequestError::Backend(_) => answer.hint("use docker or qemu"),
            RequestError::Machine(error) => answer.hint(error.hint()),
            RequestError::TooManyKeys => {
                answer.hint("remove some first: kohakuriver vps keys remove VPS KEY")
            }
            RequestError::Keep(_) => answer.hint("0 keeps all that are made"),
            RequestError::Mount(_) => answer.hint("for example /data/sets:/data:ro"),
            RequestError::Name(_)
            | RequestError::Image(_)
            | RequestError::TwoImages
            | RequestError::Cores(_)
            | RequestError::Pids(_)
            | RequestError::NoKey
            | RequestError::BadKey { .. }
            | RequestError::LongKey { .. }
            | RequestError::EnvName(_)
            | RequestError::EnvTooLong
            | RequestError::TwoGpuWishes
            | RequestError::NumaOfNoNode
            | RequestError::GpuTwice(_)
            | RequestError::TooManyGpus(_)
            | RequestError::ImageAndSnapshot
            | RequestError::SnapshotOfNothing
            | RequestError::SnapshotName(_)
            | RequestError::SnapshotMessage
            | RequestError::NothingToChange => answer,
            RequestError::UnknownKey(_) | RequestError::KeyAmbiguous(_) => {
                answer.hint("name it by its fingerprint: kohakuriver vps keys list VPS")
            }
            RequestError::NoSsh => answer.hint("create one with kohakuriver vps create --ssh"),
            RequestError::OnOom(_) => answer.hint("use end or keep"),
        }
    }
}

impl From<CreateError> for ApiError {
    fn from(error: CreateError) -> Self {
        let text = error.to_string();
        match error {
            CreateError::Refused(Refusal::UnknownNode { known, .. }) => {
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                Self::new(StatusCode::NOT_FOUND, "unknown_node", text)
                    .hint(format!("nodes here: {known} (kohakuriver node list)"))
            }
            CreateError::Refused(Refusal::NoNodes) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_nodes", text)
                    .hint("make a join token: kohakuriver node token create")
            }
            CreateError::Refused(
                Refusal::NodeUnavailable { .. } | Refusal::NoneAvailable { .. },
            ) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "node_unavailable", text)
                .hint("kohakuriver node list"),
            CreateError::Refused(Refusal::NoRoom { nearest, .. }) => {
                let hint = nearest.unwrap_or_else(|| {
                    "request less, or see the nodes' capacity: kohakuriver node list".to_owned()
                });
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_room", text).hint(hint)
            }
            CreateError::Refused(Refusal::NoGpuRuntime { .. }) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_gpu_runtime", text)
                    .hint("kohakuriver node list shows which nodes have GPUs")
            }
            CreateError::NameTaken(name) => Self::new(StatusCode::CONFLICT, "name_taken", text)
                .hint(format!("choose another name, or inspect it: kohakuriver vps status {name}")),
            CreateError::OverQuota(_) => Self::new(StatusCode::FORBIDDEN, "over_quota", text)
                .hint("stop or delete something, or ask an admin for more: kohakuriver auth quota"),
            CreateError::Decided => {
                Self::new(StatusCode::CONFLICT, "decided", text).hint("kohakuriver approval list")
            }
            CreateError::TooManyRequests => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", text)
                    .hint("withdraw some: kohakuriver vps delete")
            }
            CreateError::NoPort => Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_port", text)
                .hint("delete unused VPSes: kohakuriver vps list --all"),
            CreateError::TooLarge { .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "too_large", text)
                    .hint("use fewer SSH keys, or a smaller environment")
            }
            CreateError::Store(error) => error.into(),
        }
    }
}

impl From<OpenSessionError> for ApiError {
    fn from(error: OpenSessionError) -> Self {
        let (text, hint) = (error.to_string(), error.hint());
        let answer = match error {
            OpenSessionError::Instance(error) => return error.into(),
            OpenSessionError::NotRunning { .. } => {
                Self::new(StatusCode::CONFLICT, "not_running", text)
            }
            OpenSessionError::Paused { .. } => Self::new(StatusCode::CONFLICT, "paused", text),
            OpenSessionError::NoSsh { .. } => Self::new(StatusCode::CONFLICT, "no_ssh", text),
            OpenSessionError::TooMany | OpenSessionError::Full => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_streams", text)
            }
            OpenSessionError::Stream(StreamError::NodeOffline { .. }) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "node_away", text)
            }
            OpenSessionError::Stream(StreamError::NoConnection { .. } | StreamError::Slow) => {
                Self::new(StatusCode::BAD_GATEWAY, "node", text)
            }
            OpenSessionError::Stream(StreamError::Refused(_)) => {
                Self::new(StatusCode::BAD_GATEWAY, "refused", text)
            }
        };
        match hint {
            Some(hint) => answer.hint(hint),
            None => answer,
        }
    }
}

impl From<InstanceError> for ApiError {
    fn from(error: InstanceError) -> Self {
        let text = error.to_string();
        match error {
            InstanceError::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "not_found", text)
                .hint("kohakuriver vps list --all"),
            InstanceError::Ambiguous { ids, .. } => {
                let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
                Self::new(StatusCode::CONFLICT, "ambiguous", text)
                    .hint(format!("write more digits: {}", ids.join(", ")))
            }
            InstanceError::NotNow { possible, act, .. } => Self::new(
                StatusCode::CONFLICT,
                "wrong_state",
                format!("{text}: cannot {act} it now"),
            )
            .hint(format!("possible now: {}", possible.join(", "))),
            InstanceError::NoSnapshot { name, .. } => {
                let name = name.trim_matches('\'');
                Self::new(StatusCode::NOT_FOUND, "no_snapshot", text)
                    .hint(format!("kohakuriver vps snapshot list {name}"))
            }
            InstanceError::AmbiguousSnapshot { tags, .. } => {
                let tags: Vec<_> = tags.iter().map(ToString::to_string).collect();
                Self::new(StatusCode::CONFLICT, "ambiguous", text)
                    .hint(format!("name it by its tag: {}", tags.join(", ")))
            }
            InstanceError::OutsideDisk { .. } => {
                Self::new(StatusCode::CONFLICT, "outside_disk", text).hint(
                    "create another VPS with --from-snapshot, and copy the data there with \
                     'kohakuriver vps cp'",
                )
            }
            InstanceError::NodeAway { .. } | InstanceError::NodeOffline { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "node_away", text)
                    .hint("kohakuriver node list")
            }
            InstanceError::NodeSlow { .. } => {
                Self::new(StatusCode::BAD_GATEWAY, "node", text).hint("try again later")
            }
            InstanceError::NoPause { name } => {
                let name = name.trim_matches('\'');
                Self::new(StatusCode::CONFLICT, "no_pause", text).hint(format!(
                    "kohakuriver vps stop {name} frees what it holds and keeps its disk, \
                     kohakuriver vps restart {name} starts it again"
                ))
            }
            InstanceError::NoMachine { .. } => Self::new(StatusCode::CONFLICT, "no_machine", text)
                .hint("kohakuriver vps delete deletes any VPS"),
            InstanceError::WhichNode(_) => Self::new(StatusCode::BAD_REQUEST, "which_node", text)
                .hint("kohakuriver qemu instances shows it"),
            InstanceError::Node { code, hint, .. } => {
                let answer = match code {
                    FailureCode::SnapshotNotFound => {
                        Self::new(StatusCode::NOT_FOUND, "no_snapshot", text)
                    }
                    FailureCode::StartRefused | FailureCode::Disappeared => {
                        Self::new(StatusCode::CONFLICT, "refused", text)
                    }
                    FailureCode::DiskFull => {
                        Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk_full", text)
                    }
                    FailureCode::EngineUnavailable => {
                        Self::new(StatusCode::SERVICE_UNAVAILABLE, "engine_unavailable", text)
                    }
                    FailureCode::ImageNotFound
                    | FailureCode::ImageUnavailable
                    | FailureCode::EnvironmentNotFound
                    | FailureCode::AgentSilent
                    | FailureCode::GpuUnavailable
                    | FailureCode::Internal => Self::new(StatusCode::BAD_GATEWAY, "node", text),
                };
                match hint {
                    Some(hint) => answer.hint(hint),
                    None => answer,
                }
            }
            InstanceError::Leaving { .. } => Self::new(StatusCode::CONFLICT, "deleting", text),
            InstanceError::Denied(denied) => denied.into(),
            InstanceError::Decided => {
                Self::new(StatusCode::CONFLICT, "decided", text).hint("kohakuriver approval list")
            }
            InstanceError::NotAsShown(id) => Self::new(StatusCode::CONFLICT, "changed", text)
                .hint(format!("read it again: kohakuriver approval show {id}")),
            InstanceError::OwnerGone { .. } => {
                Self::new(StatusCode::CONFLICT, "owner_gone", text).hint("reject it")
            }
            InstanceError::NeedsOperator { .. } => {
                Self::new(StatusCode::FORBIDDEN, "needs_operator", text)
                    .hint("ask an operator to change it, or create a larger VPS")
            }
            InstanceError::Request(error) => error.into(),
            InstanceError::Create(error) => error.into(),
            InstanceError::Store(error) => error.into(),
        }
    }
}
