//! Authorization: the only module that makes the [`Authorized`] value which acting functions
//! require.
//!
//! ```text
//!  request -> accounts: which account is it -> routes: the role that the path needs -> handler
//!          -> authorize: the account's relation to this instance -> Authorized -> the act
//! ```
//!
//! [`policy`] is the table of acts on instances, [`routes`] that of the paths. With authentication
//! off, every caller has the rights of an admin; the host then listens on loopback only, unless its
//! operator chose otherwise.

pub mod origin;
pub mod policy;
pub mod routes;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use axum::extract::FromRequestParts;
use http::HeaderMap;
use http::request::Parts;
use kohakuriver_model::account::is_reserved_name;
use kohakuriver_model::{InstanceId, Role, UserId};
use kohakuriver_store::{Relation, Scope, StoreError};

use crate::host::App;
pub use policy::Permission;
use policy::Verdict;

/// The credential that identified a caller, for later checks of whether it still holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A login session, by the SHA-256 of its id in hex.
    Session(String),
    /// An API token, by the SHA-256 of its secret in hex.
    Token(String),
    /// A registered SSH key, by its fingerprint.
    Key(String),
    /// A certificate that this host signed.
    Certificate,
}

/// An authenticated account, as one caller uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub id: UserId,
    pub username: String,
    /// The role in effect: lower than the account's own where the token says so.
    pub role: Role,
    pub credential: Credential,
    /// When the credential expires.
    pub expires_ms: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Authentication is off. `claimed_name` is the user name that the client sent, unchecked.
    AuthDisabled {
        claimed_name: Option<String>,
    },
    /// Authentication is on, and the caller has not logged in.
    Anonymous,
    Account(Arc<Account>),
}

/// The principal and origin of one request or connection.
#[derive(Clone, Debug)]
pub struct Caller {
    pub principal: Principal,
    /// The address of the client, if it is known.
    pub address: Option<IpAddr>,
    /// The instance that the request turned out to be about, for the audit log.
    touched: Arc<OnceLock<InstanceId>>,
}

/// The name that our command line sends for the user that runs it.
const USER_HEADER: &str = "x-kohakuriver-user";

impl Caller {
    pub fn new(principal: Principal, address: Option<IpAddr>) -> Self {
        Self { principal, address, touched: Arc::default() }
    }

    /// Makes the caller of a request where authentication is off.
    pub fn auth_disabled(headers: &HeaderMap, address: Option<IpAddr>) -> Self {
        let claimed_name = headers
            .get(USER_HEADER)
            .and_then(|value| value.to_str().ok())
            .filter(|name| !name.is_empty() && name.len() <= 64)
            .filter(|name| !name.chars().any(char::is_control))
            .map(|name| match is_reserved_name(name) {
                true => format!("'{name}' (not logged in)"),
                false => name.to_owned(),
            });
        Self::new(Principal::AuthDisabled { claimed_name }, address)
    }

    /// Makes the caller for the host's own acts: updates of the keys and accounts that instances
    /// know.
    pub fn host() -> Self {
        Self::new(Principal::AuthDisabled { claimed_name: Some("host".to_owned()) }, None)
    }

    /// Makes the caller of a connection that carries no credential.
    pub fn unauthenticated(app: &App, address: Option<IpAddr>) -> Self {
        let principal = if app.config.auth.enabled {
            Principal::Anonymous
        } else {
            Principal::AuthDisabled { claimed_name: None }
        };
        Self::new(principal, address)
    }

    /// Returns the name for histories.
    pub fn name(&self) -> String {
        match &self.principal {
            Principal::AuthDisabled { claimed_name } => {
                claimed_name.clone().unwrap_or_else(|| "anonymous".to_owned())
            }
            Principal::Anonymous => "anonymous".to_owned(),
            // An account from before the name was reserved must not be mistaken for the system.
            Principal::Account(account) if is_reserved_name(&account.username) => {
                format!("account {}", account.username)
            }
            Principal::Account(account) => account.username.clone(),
        }
    }

    /// Returns the caller's account, if there is one.
    pub fn account(&self) -> Option<&Account> {
        match &self.principal {
            Principal::Account(account) => Some(account),
            Principal::AuthDisabled { .. } | Principal::Anonymous => None,
        }
    }

    pub fn user_id(&self) -> Option<UserId> {
        self.account().map(|account| account.id)
    }

    pub fn role(&self) -> Role {
        match &self.principal {
            Principal::AuthDisabled { .. } => Role::Admin,
            Principal::Anonymous => Role::Anony,
            Principal::Account(account) => account.role,
        }
    }

    /// Returns which instances the caller may know of. Operators also stop and inspect those of
    /// other accounts by plain name.
    pub fn scope(&self) -> Scope {
        let all = self.role() >= Role::Operator;
        Scope { me: self.user_id(), all, others_by_name: all }
    }

    /// Returns the same for opening a session: a plain name means the caller's own VPS, so that
    /// input or copied files never go to another account's VPS of that name.
    pub fn session_scope(&self) -> Scope {
        Scope { others_by_name: self.account().is_none(), ..self.scope() }
    }

    pub fn touched(&self) -> Option<InstanceId> {
        self.touched.get().copied()
    }

    /// Checks that the caller has at least this role.
    ///
    /// # Errors
    /// The caller has a lower role; the answer is the same for every act that needs it.
    pub fn require(&self, role: Role) -> Result<(), Denied> {
        if self.role() >= role {
            return Ok(());
        }
        Err(if self.principal == Principal::Anonymous {
            Denied::LogIn
        } else {
            Denied::Role { needed: role }
        })
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    /// Takes the caller that the guard has put there. Without a guard it is anonymous and may do
    /// nothing.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().cloned().unwrap_or_else(|| Self::new(Principal::Anonymous, None)))
    }
}

/// The reasons for which an act is refused.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    #[error("Not authenticated")]
    LogIn,
    #[error("this needs the role {needed}")]
    Role { needed: Role },
    #[error("you may see this VPS, but not {what}")]
    Act { what: &'static str },
    /// The caller must not learn that the instance exists.
    #[error("hidden")]
    Hidden,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Proof that a caller may do one act on one instance. Only [`authorize`] makes it.
#[derive(Debug)]
pub struct Authorized {
    task_id: InstanceId,
    permission: Permission,
}

impl Authorized {
    pub fn task_id(&self) -> InstanceId {
        self.task_id
    }

    pub fn permission(&self) -> Permission {
        self.permission
    }
}

/// Decides whether the caller may act on an instance, or on a request for one.
///
/// # Errors
/// The caller may not do this.
pub async fn authorize(
    app: &App,
    caller: &Caller,
    permission: Permission,
    task_id: InstanceId,
) -> Result<Authorized, Denied> {
    let _ = caller.touched.set(task_id);
    let verdict = match &caller.principal {
        Principal::AuthDisabled { .. } => Verdict::Allow,
        Principal::Anonymous => return Err(Denied::LogIn),
        Principal::Account(account) => verdict(app, account, permission, task_id).await?,
    };
    match verdict {
        Verdict::Allow => Ok(Authorized { task_id, permission }),
        Verdict::Forbid => Err(Denied::Act { what: describe(permission) }),
        Verdict::Hide => Err(Denied::Hidden),
    }
}

async fn verdict(
    app: &App,
    account: &Account,
    permission: Permission,
    task_id: InstanceId,
) -> Result<Verdict, StoreError> {
    let relation = app.store.relation(Some(account.id), task_id).await?;
    Ok(relation
        .map_or(Verdict::Hide, |relation| policy::on_instance(account.role, relation, permission)))
}

/// Checks again whether a caller with an open session may go on, after any change of accounts.
pub async fn still_authorized(
    app: &App,
    caller: &Caller,
    permission: Permission,
    task_id: InstanceId,
) -> bool {
    let Principal::Account(account) = &caller.principal else { return true };
    // A failing database says nothing about the caller's rights.
    let Ok(role) = app.accounts.role_now(app, account).await else { return true };
    let Some(role) = role else { return false };
    let account = Account { role, ..account.as_ref().clone() };
    !matches!(
        verdict(app, &account, permission, task_id).await,
        Ok(Verdict::Forbid | Verdict::Hide)
    )
}

/// Checks again whether the caller of a running request has the role that the request needs.
pub async fn still_has_role(app: &App, caller: &Caller, least: Role) -> bool {
    let Principal::Account(account) = &caller.principal else { return true };
    let Ok(role) = app.accounts.role_now(app, account).await else { return true };
    role.is_some_and(|role| role >= least)
}

/// Returns whether a relation that is known already permits an act, for lists.
pub fn may(caller: &Caller, relation: Relation, permission: Permission) -> bool {
    match &caller.principal {
        Principal::AuthDisabled { .. } => true,
        Principal::Anonymous => false,
        Principal::Account(account) => {
            policy::on_instance(account.role, relation, permission) == Verdict::Allow
        }
    }
}

fn describe(permission: Permission) -> &'static str {
    match permission {
        Permission::See => "see it",
        Permission::Enter => {
            "open sessions in it: its owner can share it with you at the level 'use'"
        }
        Permission::Secrets => {
            "read this of it: its owner can share it with you at the level 'manage'"
        }
        Permission::Change => "change it: its owner can share it with you at the level 'manage'",
        Permission::Delete => "delete it: only its owner and operators may",
        Permission::Share => "share it or give it away: only its owner and admins may",
    }
}
