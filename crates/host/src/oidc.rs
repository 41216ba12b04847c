//! Login by OpenID Connect: authorization code flow with PKCE, with any provider.
//!
//! ```text
//!  browser --start--> host --302--> provider ... the person logs in there ... --302--> callback
//!  host --code, verifier, secret--> provider --ID token--> host: identity, groups
//!  of a command line: callback --303--> page with a code and a button --POST--> its port
//! ```
//!
//! Between start and callback the host remembers the parameters for some minutes, and the browser a
//! cookie that binds it to them: opening the callback of a login that another browser began logs no
//! account in. Groups become a role by the operator's mapping, anew at every login.
//!
//! A start needs no consent, and a provider with a login session may redirect by itself. So an
//! attacker may have made the link, and listen on the port that it names. Therefore the session
//! goes to a command line only after the user has pressed a button on a page of this host, which
//! displays the same code as the command line (`kohakuriver_api::handover_code`).

mod account;
mod claims;
mod config;
mod id_token;
mod provider;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use kohakuriver_model::UserId;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::accounts::{LoginError, Session, begin_session, millis, new_secret};
use crate::host::App;
use provider::{Provider, ProviderError};

pub use claims::printable;
pub use config::{OidcConfig, is_safe as is_safe_url};

/// The lifetime of a login in progress; users take minutes at most.
const PENDING_LIFE: Duration = Duration::from_secs(600);
/// The bound on logins in progress; beyond it the oldest are dropped.
const MOST_PENDING: usize = 1000;
/// How long a command line may take to fetch the session that its browser has obtained.
const HANDOVER_LIFE: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    #[error("this host has no OpenID Connect provider")]
    Off,
    #[error("this login was not started on this host, or has expired")]
    Unknown,
    #[error("the provider refused: {0}")]
    Refused(String),
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// `username`: the account that had a role before.
    #[error("none of your groups at the provider has a role here")]
    NoRole { username: Option<String> },
    #[error("the provider sent no user name that is valid for an account here")]
    NoName,
    #[error(transparent)]
    Login(#[from] LoginError),
}

impl OidcError {
    /// Returns the next step, if there is one.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Off => Some("log in with a password: kohakuriver auth login"),
            Self::Unknown => Some("begin again: kohakuriver auth login --browser"),
            Self::Refused(_) => Some(
                "an admin compares --oidc-client-id, --public-url and --oidc-scope with the provider's client",
            ),
            Self::NoRole { .. } => {
                Some("an admin gives a group a role with --oidc-role GROUP=ROLE")
            }
            Self::NoName => Some("ask an admin for an invitation"),
            Self::Provider(error) => error.hint(),
            Self::Login(_) => None,
        }
    }
}

/// The command line that waits for its browser.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The port on the user's own computer.
    pub port: u16,
    /// SHA-256 of the verifier that it will present, base64url.
    pub challenge: String,
}

/// A login between start and callback.
#[derive(Debug)]
struct Pending {
    browser: String,
    nonce: String,
    verifier: String,
    waiting: Option<Waiting>,
}

/// A login that the user has not yet confirmed for a command line.
#[derive(Clone, Debug)]
struct Unconfirmed {
    browser: String,
    user: UserId,
    username: String,
    waiting: Waiting,
}

/// A session that a browser has obtained for a command line.
#[derive(Debug)]
struct Handover {
    session: String,
    challenge: String,
}

#[derive(Debug)]
pub struct Oidc {
    config: OidcConfig,
    provider: Provider,
    pending: Expiring<Pending>,
    unconfirmed: Expiring<Unconfirmed>,
    handovers: Expiring<Handover>,
}

/// The URL to send the browser to, and the cookie it must store.
#[derive(Debug)]
pub struct Started {
    pub url: String,
    pub browser: String,
}

/// The result of a callback.
#[derive(Debug)]
pub enum Callback {
    /// The session belongs to the browser itself.
    Browser { session: Box<Session> },
    /// The browser must display the confirmation page of `ticket`.
    CommandLine { ticket: String, username: String },
}

/// The contents of the confirmation page.
#[derive(Debug)]
pub struct Confirmation {
    pub username: String,
    /// The code that the command line displays.
    pub code: String,
    pub port: u16,
}

impl Oidc {
    pub fn new(config: OidcConfig) -> Self {
        let provider = Provider::new(&config);
        Self {
            config,
            provider,
            pending: Expiring::new(PENDING_LIFE),
            unconfirmed: Expiring::new(PENDING_LIFE),
            handovers: Expiring::new(HANDOVER_LIFE),
        }
    }

    /// Begins a login.
    ///
    /// # Errors
    /// The provider's login endpoint cannot be determined.
    pub async fn start(&self, app: &App, waiting: Option<Waiting>) -> Result<Started, OidcError> {
        let (state, nonce, verifier) = (new_secret(), new_secret(), new_secret());
        let browser = new_secret();
        let challenge = BASE64URL_NOPAD.encode(&Sha256::digest(&verifier));
        let asked = [
            ("response_type", "code"),
            ("client_id", &self.config.client_id),
            ("redirect_uri", &self.config.callback()),
            ("state", &state),
            ("nonce", &nonce),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
        ];
        let url = self.provider.authorize_url(&asked).await?;
        let entry = Pending { browser: browser.clone(), nonce, verifier, waiting };
        self.pending.insert(state, entry, app.clock.steady_ms());
        Ok(Started { url, browser })
    }

    /// Handles the callback from the provider. `browser` is the value of the browser's cookie.
    pub async fn handle_callback(
        &self,
        app: &App,
        state: &str,
        code: Result<&str, String>,
        browser: Option<&str>,
    ) -> Result<Callback, OidcError> {
        let entry = self.pending.take(state, app.clock.steady_ms());
        let entry = entry.filter(|entry| same(browser, &entry.browser));
        let entry = entry.ok_or(OidcError::Unknown)?;
        let code = code.map_err(OidcError::Refused)?;
        let callback = self.config.callback();
        let claims = self.provider.redeem(code, &entry.verifier, &callback, &entry.nonce).await?;
        let user = account::log_in(app, &self.config, &claims).await?;
        let Some(waiting) = entry.waiting else {
            let session = Box::new(begin_session(app, user).await?);
            return Ok(Callback::Browser { session });
        };
        let (ticket, username) = (new_secret(), user.username);
        let (browser, user) = (entry.browser, user.id);
        let entry = Unconfirmed { browser, user, username: username.clone(), waiting };
        self.unconfirmed.insert(ticket.clone(), entry, app.clock.steady_ms());
        Ok(Callback::CommandLine { ticket, username })
    }

    /// Returns the contents of the confirmation page. It may be called repeatedly.
    pub fn confirmation(
        &self,
        app: &App,
        ticket: &str,
        browser: Option<&str>,
    ) -> Result<Confirmation, OidcError> {
        let entry = self.unconfirmed.get(ticket, app.clock.steady_ms());
        let entry = entry.filter(|entry| same(browser, &entry.browser));
        let Unconfirmed { username, waiting, .. } = entry.ok_or(OidcError::Unknown)?;
        let code = kohakuriver_api::handover_code(&waiting.challenge);
        Ok(Confirmation { username, code, port: waiting.port })
    }

    /// Confirms a command line's login, after the button was pressed. Returns the URL that passes
    /// the code to it, and the account's name.
    pub async fn confirm(
        &self,
        app: &App,
        ticket: &str,
        browser: Option<&str>,
    ) -> Result<(String, String), OidcError> {
        // Checked before it is taken: another client's request must not use it up.
        self.confirmation(app, ticket, browser)?;
        let entry = self.unconfirmed.take(ticket, app.clock.steady_ms());
        let Unconfirmed { user, waiting, .. } = entry.ok_or(OidcError::Unknown)?;
        let user = app.store.lookup_user(user).await.map_err(LoginError::from)?;
        let user = user.filter(|user| user.is_active).ok_or(LoginError::Disabled)?;
        let username = user.username.clone();
        let session = begin_session(app, user).await?;
        let code = new_secret();
        let entry = Handover { session: session.secret, challenge: waiting.challenge };
        self.handovers.insert(code.clone(), entry, app.clock.steady_ms());
        Ok((format!("http://127.0.0.1:{}/?code={code}", waiting.port), username))
    }

    /// Gives a command line its session, once, if it began the login: the SHA-256 of the verifier
    /// must match the announced one.
    pub fn hand_over(&self, app: &App, code: &str, verifier: &str) -> Result<String, OidcError> {
        let entry = self.handovers.take(code, app.clock.steady_ms());
        let shown = BASE64URL_NOPAD.encode(&Sha256::digest(verifier));
        let entry = entry.filter(|entry| same(Some(&shown), &entry.challenge));
        Ok(entry.ok_or(OidcError::Unknown)?.session)
    }
}

fn same(shown: Option<&str>, known: &str) -> bool {
    shown.is_some_and(|shown| shown.as_bytes().ct_eq(known.as_bytes()).into())
}

/// A bounded table of single-use entries that expire by the steady clock.
#[derive(Debug)]
struct Expiring<T> {
    life_ms: i64,
    entries: Mutex<HashMap<String, (i64, T)>>,
}

impl<T> Expiring<T> {
    fn new(life: Duration) -> Self {
        Self { life_ms: millis(life), entries: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (i64, T)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an entry; if there are too many, the oldest is dropped.
    fn insert(&self, key: String, value: T, now_ms: i64) {
        let mut entries = self.lock();
        entries.retain(|_, (until_ms, _)| *until_ms > now_ms);
        if entries.len() >= MOST_PENDING
            && let Some(oldest) = entries
                .iter()
                .min_by_key(|(_, (until_ms, _))| *until_ms)
                .map(|(key, _)| key.clone())
        {
            entries.remove(&oldest);
        }
        entries.insert(key, (now_ms.saturating_add(self.life_ms), value));
    }

    fn take(&self, key: &str, now_ms: i64) -> Option<T> {
        let (until_ms, value) = self.lock().remove(key)?;
        (until_ms > now_ms).then_some(value)
    }

    fn get(&self, key: &str, now_ms: i64) -> Option<T>
    where
        T: Clone,
    {
        let entries = self.lock();
        let (until_ms, value) = entries.get(key)?;
        (*until_ms > now_ms).then(|| value.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiring_entry_is_single_use_and_expires() {
        let table = Expiring::new(Duration::from_millis(10));
        for key in ["a", "b"] {
            table.insert(key.to_owned(), key, 0);
        }
        assert_eq!(
            (table.get("a", 9), table.take("a", 9), table.take("a", 9)),
            (Some("a"), Some("a"), None)
        );
        assert_eq!((table.get("b", 10), table.take("b", 10)), (None, None));
    }

    #[test]
    fn expiring_table_drops_its_oldest_entries() {
        let table = Expiring::new(Duration::from_secs(1));
        for number in 0..=MOST_PENDING {
            table.insert(number.to_string(), number, i64::try_from(number).unwrap() / 10);
        }
        assert_eq!(table.lock().len(), MOST_PENDING);
        assert!(table.get(&MOST_PENDING.to_string(), 0).is_some());
    }
}
