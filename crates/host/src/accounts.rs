//! Authentication: login sessions, tokens, passwords.
//!
//! Every secret is 256 random bits and stored by its SHA-256 only. The account of a credential is
//! cached for a moment, so that an authenticated request costs one table lookup; any change of
//! accounts empties the cache.

mod password;
mod throttle;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use data_encoding::HEXLOWER;
use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE};
use kohakuriver_api::{ChangePassword, Register, ResetPassword, Secret};
use kohakuriver_model::account::user_name;
use kohakuriver_model::{Role, UserId};
use kohakuriver_store::{
    AuthenticatedUser, InvitationError, NewInvitation, NewSession, NewUser, StoreError, UserChange,
    UserError, UserRow,
};
use rand::Rng;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::access::{Account, Caller, Credential, Principal};
use crate::audit::Entry;
use crate::host::App;
use crate::oidc::OidcConfig;

pub use password::{PasswordError, Passwords};
pub use throttle::{Slow, Throttle};

/// The session's cookie, by the name that existing clients know.
pub const COOKIE_NAME: &str = "kohakuriver_session";
/// The action's name in the audit log.
pub const LOG_IN: &str = "auth.login";
/// How long a cached credential counts without another look-up.
const CACHED_MS: i64 = 5_000;
const MAX_CACHED: usize = 1024;
/// The name of the first admin's invitation.
const SETUP_LIFE: Duration = Duration::from_secs(24 * 3600);

/// The configuration of authentication.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    pub enabled: bool,
    pub session_life: Duration,
    /// How long a request waits for an operator before it is rejected.
    pub request_life: Duration,
    pub oidc: Option<OidcConfig>,
    /// How long credentials of an account without a password count after its last log-in at the
    /// OpenID Connect provider.
    pub provider_life: Duration,
}

impl Default for AuthConfig {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 3600);
        Self {
            enabled: false,
            session_life: 30 * day,
            request_life: 14 * day,
            oidc: None,
            provider_life: 30 * day,
        }
    }
}

/// The shared state of authentication.
#[derive(Debug)]
pub struct Accounts {
    pub passwords: Passwords,
    pub throttle: Throttle,
    /// Bounds how many entries unauthenticated clients can make in the audit log.
    pub strangers: Throttle,
    cached: Mutex<HashMap<(Kind, [u8; 32]), CachedAccount>>,
    /// Counts changes of accounts, shares and keys, for the sessions that are open.
    changed: watch::Sender<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Session,
    Token,
}

#[derive(Clone, Debug)]
struct CachedAccount {
    account: Arc<Account>,
    /// When it was cached, by the steady clock.
    until_ms: i64,
}

/// The reasons for which a log-in fails.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error("authentication is off on this host")]
    Off,
    #[error("wrong user name or password")]
    Wrong,
    #[error("this account is disabled")]
    Disabled,
    #[error(transparent)]
    Slow(#[from] Slow),
    #[error(transparent)]
    Password(#[from] PasswordError),
    #[error(transparent)]
    Invitation(#[from] InvitationError),
    #[error("this password link is unknown or has expired")]
    NoReset,
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A session that has just begun.
#[derive(Debug)]
pub struct Session {
    /// The cookie's value; the host does not store it.
    pub secret: String,
    pub user: UserRow,
    pub life: Duration,
}

impl Default for Accounts {
    fn default() -> Self {
        Self {
            passwords: Passwords::default(),
            throttle: Throttle::default(),
            strangers: Throttle::default(),
            cached: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl Accounts {
    /// Invalidates the cache and has open sessions checked, after accounts, shares or keys changed.
    pub fn changed(&self) {
        self.lock().clear();
        self.changed.send_modify(|count| *count += 1);
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(Kind, [u8; 32]), CachedAccount>> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Identifies the caller of a request. An invalid cookie does not prevent a valid bearer token
    /// from being accepted.
    ///
    /// # Errors
    /// The database failed.
    pub async fn caller(
        &self,
        app: &App,
        headers: &HeaderMap,
        address: Option<IpAddr>,
    ) -> Result<Caller, StoreError> {
        if !app.config.auth.enabled {
            return Ok(Caller::auth_disabled(headers, address));
        }
        let shown = [(Kind::Session, cookie(headers, COOKIE_NAME)), (Kind::Token, bearer(headers))];
        for (kind, secret) in shown {
            if let Some(secret) = secret
                && let Some(account) = self.account(app, kind, secret).await?
            {
                return Ok(Caller::new(Principal::Account(account), address));
            }
        }
        Ok(Caller::new(Principal::Anonymous, address))
    }

    /// Identifies the account that a token belongs to.
    pub async fn account_of_token(
        &self,
        app: &App,
        secret: &str,
    ) -> Result<Option<Arc<Account>>, StoreError> {
        self.account(app, Kind::Token, secret).await
    }

    async fn account(
        &self,
        app: &App,
        kind: Kind,
        secret: &str,
    ) -> Result<Option<Arc<Account>>, StoreError> {
        if !is_secret(secret) {
            return Ok(None);
        }
        let digest: [u8; 32] = Sha256::digest(secret).into();
        let (now_ms, steady_ms) = (app.clock.now_ms(), app.clock.steady_ms());
        if let Some(known) = self.lock().get(&(kind, digest))
            && steady_ms < known.until_ms
            && known.account.expires_ms.is_none_or(|at_ms| now_ms < at_ms)
        {
            return Ok(Some(known.account.clone()));
        }
        // A change after this moment must not be missed by the entry that is cached below.
        let seen = *self.changed.borrow();
        let hash = HEXLOWER.encode(&digest);
        let found = match kind {
            Kind::Session => app.store.session(&hash, now_ms).await?,
            Kind::Token => app.store.token(&hash, now_ms).await?,
        };
        let Some(AuthenticatedUser { user, role, expires_ms }) = found else { return Ok(None) };
        let Some(expires_ms) = counts_until(app, &user, expires_ms) else { return Ok(None) };
        let credential = match kind {
            Kind::Session => Credential::Session(hash),
            Kind::Token => Credential::Token(hash),
        };
        let account = Arc::new(Account {
            id: user.id,
            username: user.username,
            role,
            credential,
            expires_ms,
        });
        let until_ms = steady_ms + CACHED_MS;
        let mut cached = self.lock();
        if cached.len() >= MAX_CACHED {
            cached.clear();
        }
        if *self.changed.borrow() == seen {
            let entry = CachedAccount { account: account.clone(), until_ms };
            cached.insert((kind, digest), entry);
        }
        Ok(Some(account))
    }

    /// Returns the role that the account of an open session has now; `None` if its credential has
    /// been revoked.
    pub async fn role_now(&self, app: &App, account: &Account) -> Result<Option<Role>, StoreError> {
        let now_ms = app.clock.now_ms();
        let whole = |user: UserRow| AuthenticatedUser { role: user.role, expires_ms: None, user };
        let found = match &account.credential {
            Credential::Session(hash) => app.store.session(hash, now_ms).await?,
            Credential::Token(hash) => app.store.token(hash, now_ms).await?,
            Credential::Key(fingerprint) => {
                let user = app.store.user_of_key(fingerprint).await?;
                user.filter(|user| user.id == account.id).map(whole)
            }
            Credential::Certificate => {
                let user = app.store.lookup_user(account.id).await?;
                user.filter(|user| user.is_active).map(whole)
            }
        };
        let counts = |found: &AuthenticatedUser| counts_until(app, &found.user, None).is_some();
        Ok(found.filter(counts).map(|found| found.role))
    }

    /// Checks a name and password, begins a session and records it.
    ///
    /// # Errors
    /// The password is wrong, there is no such account, it is disabled, or there were too many
    /// tries. The first two cannot be distinguished, by text or by time.
    pub async fn log_in(
        &self,
        app: &App,
        username: &str,
        password: String,
        caller: &Caller,
    ) -> Result<Session, LoginError> {
        require_on(app)?;
        let address = caller.address;
        self.throttle.admit(username, address, app.clock.steady_ms())?;
        let user = app.store.lookup_username(username).await?;
        let hash = user.as_ref().and_then(|user| user.password.clone());
        let right = self.passwords.verify(password, hash).await?;
        let Some(user) = user.filter(|_| right) else { return Err(LoginError::Wrong) };
        if !user.is_active {
            return Err(LoginError::Disabled);
        }
        self.throttle.forgive(username, address);
        let session = new_session(app, user);
        let object = format!("user {}", session.user.username);
        let entry = Entry { action: LOG_IN, object, result: "ok", detail: String::new() };
        let entry = app.audit.complete(caller, entry);
        app.store.log_in(&session.row(&digest(&session.secret), app), entry).await?;
        Ok(session)
    }

    /// Creates the account that an invitation is for, and logs it in.
    pub async fn register(
        &self,
        app: &App,
        invitation: &str,
        request: Register,
        address: Option<IpAddr>,
    ) -> Result<Session, LoginError> {
        require_on(app)?;
        self.throttle.admit("", address, app.clock.steady_ms())?;
        let name = user_name(&request.username).map_err(PasswordError::from)?;
        // Hashing is costly, so it needs a valid invitation.
        app.store.check_invitation(&digest(invitation), app.clock.now_ms()).await?;
        let hashed = self.passwords.hash(request.password.0).await?;
        let new = NewUser {
            display_name: request.display_name.unwrap_or_else(|| name.clone()),
            username: name,
            role: Role::Anony,
            password: Some(hashed),
            external: None,
        };
        let user =
            app.store.redeem_invitation(&digest(invitation), &new, app.clock.now_ms()).await?;
        self.changed();
        begin_session(app, user).await
    }

    /// Replaces the password after checking the current one. All sessions of the account end.
    pub async fn change_password(
        &self,
        app: &App,
        account: &Account,
        request: ChangePassword,
        address: Option<IpAddr>,
    ) -> Result<Session, LoginError> {
        let ChangePassword { old_password: Secret(old), new_password, end_tokens } = request;
        self.throttle.admit(&account.username, address, app.clock.steady_ms())?;
        let user = app.store.lookup_user(account.id).await?.ok_or(LoginError::Wrong)?;
        if !self.passwords.verify(old, user.password).await? {
            return Err(LoginError::Wrong);
        }
        self.set_password(app, account.id, new_password.0, end_tokens).await
    }

    /// Creates a single-use secret for setting a new password, valid while `by` is an admin.
    /// Returns the secret.
    pub async fn create_reset(
        &self,
        app: &App,
        user: UserId,
        life: Duration,
        by: Option<UserId>,
    ) -> Result<(String, i64), StoreError> {
        let secret = new_secret();
        let expires_ms = app.clock.now_ms() + millis(life);
        app.store.create_password_reset(user, &digest(&secret), expires_ms, by).await?;
        Ok((secret, expires_ms))
    }

    pub async fn reset_password(
        &self,
        app: &App,
        request: ResetPassword,
        address: Option<IpAddr>,
    ) -> Result<Session, LoginError> {
        let ResetPassword { token: Secret(secret), new_password: Secret(new), end_tokens } =
            request;
        require_on(app)?;
        self.throttle.admit("", address, app.clock.steady_ms())?;
        // Checked before the link is redeemed, so that a bad password does not use it up.
        password::check(&new)?;
        let user = app.store.take_password_reset(&digest(&secret), app.clock.now_ms()).await?;
        self.set_password(app, user.ok_or(LoginError::NoReset)?, new, end_tokens).await
    }

    async fn set_password(
        &self,
        app: &App,
        user: UserId,
        new: String,
        end_tokens: bool,
    ) -> Result<Session, LoginError> {
        let password = Some(self.passwords.hash(new).await?);
        let change = UserChange { password, end_tokens, ..UserChange::default() };
        let user = app.store.change_user(user, &change).await?;
        self.changed();
        if !user.is_active {
            return Err(LoginError::Disabled);
        }
        begin_session(app, user).await
    }

    /// Creates an invitation for the first admin, which replaces earlier ones. Returns `None` if
    /// there is an admin, or authentication is off.
    pub async fn setup_invitation(&self, app: &App) -> Result<Option<String>, StoreError> {
        if !app.config.auth.enabled || app.store.has_admin().await? {
            return Ok(None);
        }
        app.store.delete_setup_invitations().await?;
        let secret = new_secret();
        let new = NewInvitation {
            hash: digest(&secret),
            shown: mask_secret(&secret),
            role: Role::Admin,
            group: None,
            max_usage: 1,
            expires_ms: app.clock.now_ms() + millis(SETUP_LIFE),
            created_by: None,
        };
        app.store.create_invitation(&new, app.clock.now_ms()).await?;
        Ok(Some(secret))
    }
}

/// Returns when a credential ends that would expire at `expires_ms` by itself; the outer `None` if
/// it has ended. Accounts of a provider have to log in there from time to time.
pub fn counts_until(app: &App, user: &UserRow, expires_ms: Option<i64>) -> Option<Option<i64>> {
    let provider_end_ms = user.provider_end_ms(millis(app.config.auth.provider_life));
    let end_ms = expires_ms.into_iter().chain(provider_end_ms).min();
    let now_ms = app.clock.now_ms();
    end_ms.is_none_or(|end_ms| now_ms < end_ms).then_some(end_ms)
}

fn require_on(app: &App) -> Result<(), LoginError> {
    if app.config.auth.enabled { Ok(()) } else { Err(LoginError::Off) }
}

/// Begins a session for an account that has proven its identity.
pub async fn begin_session(app: &App, user: UserRow) -> Result<Session, LoginError> {
    let session = new_session(app, user);
    app.store.create_session(&session.row(&digest(&session.secret), app)).await?;
    Ok(session)
}

fn new_session(app: &App, user: UserRow) -> Session {
    Session { secret: new_secret(), user, life: app.config.auth.session_life }
}

impl Session {
    fn row<'a>(&self, hash: &'a str, app: &App) -> NewSession<'a> {
        let now_ms = app.clock.now_ms();
        NewSession { user: self.user.id, hash, now_ms, expires_ms: now_ms + millis(self.life) }
    }
}

/// Returns 256 random bits as existing clients expect them: 64 lower-case hexadecimal digits.
pub fn new_secret() -> String {
    let mut bytes = [0; 32];
    rand::rng().fill_bytes(&mut bytes);
    HEXLOWER.encode(&bytes)
}

/// Returns the SHA-256 of a secret, the form in which it is stored.
pub fn digest(secret: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(secret))
}

/// Returns a prefix of a secret: long enough to distinguish it from others, too short to guess the
/// rest.
pub fn mask_secret(secret: &str) -> String {
    secret.get(..8).unwrap_or_default().to_owned()
}

pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}

/// Returns whether the text has the form of a secret; only such texts are looked up.
pub fn is_secret(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Returns a cookie's value, from any number of cookies and headers.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(found, _)| *found == name)
        .map(|(_, value)| value)
}

/// Returns the bearer token of a request, if there is one.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_is_found_among_other_cookies() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, "a=b; theme=dark".parse().unwrap());
        headers.append(COOKIE, "x=1;kohakuriver_session=feed ; y=2".parse().unwrap());
        assert_eq!(cookie(&headers, COOKIE_NAME), Some("feed"));
        assert_eq!(cookie(&HeaderMap::new(), COOKIE_NAME), None);
    }

    #[test]
    fn secrets_are_hex_of_the_right_length() {
        assert!(is_secret(&new_secret()));
        for bad in ["", "x", &"g".repeat(64), &"a".repeat(65)] {
            assert!(!is_secret(bad), "{bad:?}");
        }
    }
}
