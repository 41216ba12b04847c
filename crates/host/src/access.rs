//! Who may do what: the only module that makes the proof which acting functions ask for.
//!
//! ```text
//!  request -> accounts: who is it -> routes: what the path asks for -> handler
//!          -> authorize: what somebody is to this instance -> Authorized -> the act
//! ```
//!
//! [`policy`] is the table of acts on instances, [`routes`] that of the paths. Where nobody logs
//! in, everybody is the one user; the host listens on loopback only then, unless its operator
//! said otherwise.

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

/// What proved who somebody is, to be looked at again while they go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// The SHA-256 of a session's id, in hex.
    Session(String),
    /// Of an API token.
    Token(String),
    /// A registered SSH key, by its fingerprint.
    Key(String),
    /// A certificate that this host signed.
    Certificate,
}

/// Somebody with an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub id: UserId,
    pub username: String,
    /// What they may be here: less than they are where their token says so.
    pub role: Role,
    pub proof: Credential,
    /// When the proof is none any more.
    pub expires_ms: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Nobody logs in here. `claimed_name`: who the program says it is run by; nobody has checked it.
    AuthDisabled {
        claimed_name: Option<String>,
    },
    /// One should log in here, and this one has not.
    Anonymous,
    Account(Arc<Account>),
}

/// Who asks, for the length of one request or connection.
#[derive(Clone, Debug)]
pub struct Caller {
    pub who: Principal,
    /// Where they come from, if that is known.
    pub address: Option<IpAddr>,
    /// The instance it turned out to be about, for the audit log.
    touched: Arc<OnceLock<InstanceId>>,
}

/// The name a program of ours gives for the person who runs it.
const USER_HEADER: &str = "x-kohakuriver-user";

impl Caller {
    pub fn new(who: Principal, address: Option<IpAddr>) -> Self {
        Self { who, address, touched: Arc::default() }
    }

    /// Where nobody logs in.
    pub fn everybody(headers: &HeaderMap, address: Option<IpAddr>) -> Self {
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

    /// The host, where it acts by itself: it keeps what it has told instances up to date.
    pub fn host() -> Self {
        Self::new(Principal::AuthDisabled { claimed_name: Some("host".to_owned()) }, None)
    }

    /// A way in that tells nothing of who uses it.
    pub fn unnamed(app: &App, address: Option<IpAddr>) -> Self {
        let who = if app.config.auth.enabled {
            Principal::Anonymous
        } else {
            Principal::AuthDisabled { claimed_name: None }
        };
        Self::new(who, address)
    }

    /// For histories.
    pub fn name(&self) -> String {
        match &self.who {
            Principal::AuthDisabled { claimed_name } => {
                claimed_name.clone().unwrap_or_else(|| "anonymous".to_owned())
            }
            Principal::Anonymous => "anonymous".to_owned(),
            // An account from before the name was reserved is not taken for the system.
            Principal::Account(person) if is_reserved_name(&person.username) => {
                format!("account {}", person.username)
            }
            Principal::Account(person) => person.username.clone(),
        }
    }

    /// Their account, if they have one here.
    pub fn person(&self) -> Option<&Account> {
        match &self.who {
            Principal::Account(person) => Some(person),
            Principal::AuthDisabled { .. } | Principal::Anonymous => None,
        }
    }

    pub fn user_id(&self) -> Option<UserId> {
        self.person().map(|person| person.id)
    }

    pub fn role(&self) -> Role {
        match &self.who {
            Principal::AuthDisabled { .. } => Role::Admin,
            Principal::Anonymous => Role::Anony,
            Principal::Account(person) => person.role,
        }
    }

    /// What they may know of. Those who run the cluster stop and inspect by plain names, too.
    pub fn scope(&self) -> Scope {
        let all = self.role() >= Role::Operator;
        Scope { me: self.user_id(), all, others_by_name: all }
    }

    /// The same, for going inside: whoever types a plain name means their own, and must not hand
    /// what they type or copy to another account that has a VPS of that name.
    pub fn scope_to_enter(&self) -> Scope {
        Scope { others_by_name: self.person().is_none(), ..self.scope() }
    }

    pub fn touched(&self) -> Option<InstanceId> {
        self.touched.get().copied()
    }

    /// Whether they have at least this role.
    ///
    /// # Errors
    /// They have not; the answer is the same for everything that asks for it.
    pub fn require(&self, role: Role) -> Result<(), Denied> {
        if self.role() >= role {
            return Ok(());
        }
        Err(if self.who == Principal::Anonymous {
            Denied::LogIn
        } else {
            Denied::Role { needed: role }
        })
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    /// The guard has put it there. Without one it is nobody, who may do nothing.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().cloned().unwrap_or_else(|| Self::new(Principal::Anonymous, None)))
    }
}

/// Why somebody may not.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    #[error("Not authenticated")]
    LogIn,
    #[error("this needs the role {needed}")]
    Role { needed: Role },
    #[error("you may see this VPS, but not {what}")]
    Act { what: &'static str },
    /// They must not learn that it exists.
    #[error("hidden")]
    Hidden,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Proof that a caller may do something with one instance. Only [`authorize`] makes it.
#[derive(Debug)]
pub struct Authorized {
    task_id: InstanceId,
    wish: Permission,
}

impl Authorized {
    pub fn task_id(&self) -> InstanceId {
        self.task_id
    }

    pub fn wish(&self) -> Permission {
        self.wish
    }
}

/// The one decision about an instance, or a request for one.
///
/// # Errors
/// The caller may not do this.
pub async fn authorize(
    app: &App,
    caller: &Caller,
    wish: Permission,
    task_id: InstanceId,
) -> Result<Authorized, Denied> {
    let _ = caller.touched.set(task_id);
    let verdict = match &caller.who {
        Principal::AuthDisabled { .. } => Verdict::Allow,
        Principal::Anonymous => return Err(Denied::LogIn),
        Principal::Account(person) => verdict(app, person, wish, task_id).await?,
    };
    match verdict {
        Verdict::Allow => Ok(Authorized { task_id, wish }),
        Verdict::Forbid => Err(Denied::Act { what: phrase(wish) }),
        Verdict::Hide => Err(Denied::Hidden),
    }
}

async fn verdict(
    app: &App,
    person: &Account,
    wish: Permission,
    task_id: InstanceId,
) -> Result<Verdict, StoreError> {
    let relation = app.store.relation(Some(person.id), task_id).await?;
    Ok(relation.map_or(Verdict::Hide, |relation| policy::on_instance(person.role, relation, wish)))
}

/// Whether somebody who is in may stay, asked again when anything about accounts has changed.
pub async fn still_authorized(
    app: &App,
    caller: &Caller,
    wish: Permission,
    task_id: InstanceId,
) -> bool {
    let Principal::Account(person) = &caller.who else { return true };
    // A database that fails now says nothing about anybody's rights.
    let Ok(role) = app.accounts.role_now(app, person).await else { return true };
    let Some(role) = role else { return false };
    let person = Account { role, ..person.as_ref().clone() };
    !matches!(verdict(app, &person, wish, task_id).await, Ok(Verdict::Forbid | Verdict::Hide))
}

/// Returns whether the caller of a running request still has the role that the request needs.
pub async fn still_has_role(app: &App, caller: &Caller, least: Role) -> bool {
    let Principal::Account(person) = &caller.who else { return true };
    let Ok(role) = app.accounts.role_now(app, person).await else { return true };
    role.is_some_and(|role| role >= least)
}

/// What somebody is to all that is shared with them, for lists.
pub fn may(caller: &Caller, relation: Relation, wish: Permission) -> bool {
    match &caller.who {
        Principal::AuthDisabled { .. } => true,
        Principal::Anonymous => false,
        Principal::Account(person) => {
            policy::on_instance(person.role, relation, wish) == Verdict::Allow
        }
    }
}

fn phrase(wish: Permission) -> &'static str {
    match wish {
        Permission::See => "look at it",
        Permission::Enter => "get into it: its owner can share it with you at the level 'use'",
        Permission::Secrets => {
            "read this of it: its owner can share it with you at the level 'manage'"
        }
        Permission::Change => "change it: its owner can share it with you at the level 'manage'",
        Permission::Delete => "delete it: only its owner and operators may",
        Permission::Share => "share it or give it away: only its owner and admins may",
    }
}
