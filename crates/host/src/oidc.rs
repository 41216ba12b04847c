//! Logging in by OpenID Connect: authorization code flow with PKCE, against whatever provider
//! the lab has.
//!
//! ```text
//!  browser --start--> host --302--> provider ... the person logs in there ... --302--> callback
//!  host --code, verifier, secret--> provider --ID token--> host: who, in which groups
//! ```
//!
//! Between start and callback the host remembers what it sent, for minutes, and the browser a
//! cookie that says it was the one: a link to the callback that somebody else made logs nobody in.
//! Groups become a role by the operator's mapping, anew at every log-in.

mod provider;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use kohakuriver_model::Role;
use kohakuriver_model::account::user_name;
use kohakuriver_store::{NewUser, UserChange, UserError, UserRow};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::accounts::{LoginError, Session, begin_session, millis, new_secret};
use crate::host::App;
use provider::{Claims, Provider, ProviderError};

pub use provider::is_safe as is_safe_url;

/// Somebody who logs in takes minutes at most.
const PENDING_LIFE: Duration = Duration::from_secs(600);
/// More at once are strangers'; the oldest give way.
const MOST_PENDING: usize = 1000;
/// How long a command line may take to fetch what its browser has got for it.
const HANDOVER_LIFE: Duration = Duration::from_secs(60);

/// How people log in by OpenID Connect.
#[derive(Clone)]
pub struct OidcConfig {
    /// As the provider calls itself; where its discovery document is.
    pub issuer: String,
    pub client_id: String,
    pub client_secret: Option<String>,
    /// Where people reach this host, without a slash at the end.
    pub public_url: String,
    /// The claim that lists somebody's groups.
    pub groups_claim: String,
    /// The role of each group; the highest counts.
    pub roles: Vec<(String, Role)>,
    /// The role of somebody in none of them; `None` keeps them out.
    pub default_role: Option<Role>,
}

impl std::fmt::Debug for OidcConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OidcConfig").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

impl OidcConfig {
    fn callback(&self) -> String {
        format!("{}/api/auth/oidc/callback", self.public_url)
    }

    fn role(&self, groups: &[String]) -> Option<Role> {
        let mapped = self.roles.iter().filter(|(group, _)| groups.contains(group));
        mapped.map(|(_, role)| *role).max().or(self.default_role)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    #[error("this host has no OpenID Connect provider")]
    Off,
    #[error("this log-in was not begun here, or too long ago")]
    Unknown,
    #[error("the provider refused: {0}")]
    Refused(String),
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error("nobody has given a role here to the groups you are in")]
    NoRole,
    #[error("the provider gave no user name that can be one here")]
    NoName,
    #[error(transparent)]
    Login(#[from] LoginError),
}

/// Where a command line waits for its browser.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// On the person's own machine.
    pub port: u16,
    /// SHA-256 of what it will show, base64url.
    pub challenge: String,
}

/// A log-in between start and callback.
#[derive(Debug)]
struct Pending {
    browser: String,
    nonce: String,
    verifier: String,
    waiting: Option<Waiting>,
    until_ms: i64,
}

/// What a browser has got for a command line.
#[derive(Debug)]
struct Handover {
    session: String,
    challenge: String,
    until_ms: i64,
}

#[derive(Debug)]
pub struct Oidc {
    config: OidcConfig,
    provider: Provider,
    pending: Mutex<HashMap<String, Pending>>,
    handovers: Mutex<HashMap<String, Handover>>,
}

/// Where to send the browser, and what it has to keep.
#[derive(Debug)]
pub struct Started {
    pub url: String,
    pub browser: String,
}

/// Where to send the browser, and the session it has unless a command line gets it.
#[derive(Debug)]
pub struct Arrived {
    pub url: String,
    pub session: Option<Session>,
    pub username: String,
}

impl Oidc {
    pub fn new(config: OidcConfig) -> Self {
        let provider = Provider::new(&config);
        Self { config, provider, pending: Mutex::default(), handovers: Mutex::default() }
    }

    /// Begins a log-in.
    ///
    /// # Errors
    /// The provider cannot be asked where people log in.
    pub async fn start(&self, app: &App, waiting: Option<Waiting>) -> Result<Started, OidcError> {
        let now_ms = app.clock.now_ms();
        let (state, nonce, verifier) = (new_secret(), new_secret(), new_secret());
        let browser = new_secret();
        let challenge = BASE64URL_NOPAD.encode(&Sha256::digest(&verifier));
        let asked = [
            ("response_type", "code"),
            ("client_id", &self.config.client_id),
            ("redirect_uri", &self.config.callback()),
            ("scope", "openid profile email groups"),
            ("state", &state),
            ("nonce", &nonce),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
        ];
        let url = self.provider.authorize_url(&asked).await?;
        let until_ms = now_ms + millis(PENDING_LIFE);
        let entry = Pending { browser: browser.clone(), nonce, verifier, waiting, until_ms };
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.retain(|_, entry| entry.until_ms > now_ms);
        if pending.len() >= MOST_PENDING
            && let Some(oldest) =
                pending.iter().min_by_key(|(_, entry)| entry.until_ms).map(|(key, _)| key.clone())
        {
            pending.remove(&oldest);
        }
        pending.insert(state, entry);
        Ok(Started { url, browser })
    }

    /// Takes somebody back from the provider. `browser` is what its cookie says.
    pub async fn arrive(
        &self,
        app: &App,
        state: &str,
        code: Result<&str, String>,
        browser: Option<&str>,
    ) -> Result<Arrived, OidcError> {
        let now_ms = app.clock.now_ms();
        let entry = {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            pending.remove(state)
        };
        let entry = entry.filter(|entry| entry.until_ms > now_ms).filter(|entry| {
            browser.is_some_and(|text| text.as_bytes().ct_eq(entry.browser.as_bytes()).into())
        });
        let entry = entry.ok_or(OidcError::Unknown)?;
        let code = code.map_err(OidcError::Refused)?;
        let callback = self.config.callback();
        let claims = self.provider.redeem(code, &entry.verifier, &callback, &entry.nonce).await?;
        let user = self.account(app, &claims).await?;
        let username = user.username.clone();
        let session = begin_session(app, user).await?;
        let Some(Waiting { port, challenge }) = entry.waiting else {
            let url = "/welcome".to_owned();
            return Ok(Arrived { url, session: Some(session), username });
        };
        let code = new_secret();
        let until_ms = now_ms + millis(HANDOVER_LIFE);
        let entry = Handover { session: session.secret, challenge, until_ms };
        let mut handovers = self.handovers.lock().unwrap_or_else(PoisonError::into_inner);
        handovers.retain(|_, entry| entry.until_ms > now_ms);
        if handovers.len() < MOST_PENDING {
            handovers.insert(code.clone(), entry);
        }
        let url = format!("http://127.0.0.1:{port}/?code={code}");
        Ok(Arrived { url, session: None, username })
    }

    /// Gives a command line its session, once, if it is the one that began: the SHA-256 of what
    /// it shows is what it announced.
    pub fn hand_over(&self, app: &App, code: &str, verifier: &str) -> Result<String, OidcError> {
        let mut handovers = self.handovers.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = handovers.remove(code).ok_or(OidcError::Unknown)?;
        let shown = BASE64URL_NOPAD.encode(&Sha256::digest(verifier));
        let same: bool = shown.as_bytes().ct_eq(entry.challenge.as_bytes()).into();
        if !same || entry.until_ms <= app.clock.now_ms() {
            return Err(OidcError::Unknown);
        }
        Ok(entry.session)
    }

    /// The account of whoever the provider says it is, made at their first log-in.
    async fn account(&self, app: &App, claims: &Claims) -> Result<UserRow, OidcError> {
        let role = self.config.role(&claims.groups).ok_or(OidcError::NoRole)?;
        let external = format!("{} {}", self.config.issuer, claims.subject);
        let store = &app.store;
        if let Some(user) = store.lookup_external(&external).await.map_err(LoginError::from)? {
            if !user.is_active {
                return Err(LoginError::Disabled.into());
            }
            if user.role == role {
                return Ok(user);
            }
            let change = UserChange { role: Some(role), ..UserChange::default() };
            return match store.change_user(user.id, &change).await {
                Ok(user) => {
                    app.accounts.changed();
                    Ok(user)
                }
                // Somebody must be: the mapping has its way at the next log-in.
                Err(UserError::LastAdmin) => Ok(user),
                Err(error) => Err(LoginError::from(error).into()),
            };
        }
        let name = claims.name().ok_or(OidcError::NoName)?;
        // A name that is taken belongs to somebody else, whatever the provider calls this one.
        for number in 1..100 {
            let username = if number == 1 { name.clone() } else { format!("{name}-{number}") };
            let new = NewUser {
                display_name: claims.full_name.clone().unwrap_or_else(|| username.clone()),
                username,
                role,
                password: None,
                external: Some(external.clone()),
            };
            match store.create_user(&new, app.clock.now_ms()).await {
                Ok(user) => return Ok(user),
                Err(UserError::NameTaken(_)) => {}
                Err(error) => return Err(LoginError::from(error).into()),
            }
        }
        Err(OidcError::NoName)
    }
}

impl Claims {
    /// What can be a name here of what the provider calls them.
    fn name(&self) -> Option<String> {
        let mail = self.email.as_deref().and_then(|mail| mail.split('@').next());
        let candidates = [self.preferred_username.as_deref(), mail, Some(&self.subject)];
        candidates.into_iter().flatten().find_map(|text| {
            let text = text.split('@').next().unwrap_or(text).to_lowercase();
            let plain = |c: char| {
                if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '-' }
            };
            let text: String = text.chars().map(plain).take(45).collect();
            user_name(text.trim_matches(['.', '-', '_'])).ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(preferred: Option<&str>, email: Option<&str>, subject: &str) -> Claims {
        Claims {
            subject: subject.to_owned(),
            preferred_username: preferred.map(str::to_owned),
            email: email.map(str::to_owned),
            full_name: None,
            groups: Vec::new(),
        }
    }

    #[test]
    fn names_are_made_of_what_the_provider_says() {
        let name = |p, e, s| claims(p, e, s).name();
        assert_eq!(name(Some("Alice"), None, "1").as_deref(), Some("alice"));
        assert_eq!(name(Some("alice@lab.example"), None, "1").as_deref(), Some("alice"));
        assert_eq!(name(Some("Zoë Ångström"), None, "1").as_deref(), Some("zo---ngstr-m"));
        assert_eq!(name(None, Some("bob@lab.example"), "1").as_deref(), Some("bob"));
        assert_eq!(name(Some("../"), None, "77").as_deref(), Some("77"));
        assert_eq!(name(None, None, "///"), None);
    }

    #[test]
    fn the_highest_role_of_all_groups_counts() {
        let config = OidcConfig {
            issuer: String::new(),
            client_id: String::new(),
            client_secret: None,
            public_url: String::new(),
            groups_claim: "groups".to_owned(),
            roles: vec![("staff".to_owned(), Role::Operator), ("lab".to_owned(), Role::User)],
            default_role: None,
        };
        let groups = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(config.role(&groups(&["lab", "staff"])), Some(Role::Operator));
        assert_eq!(config.role(&groups(&["lab"])), Some(Role::User));
        assert_eq!(config.role(&groups(&["other"])), None);
        let open = OidcConfig { default_role: Some(Role::Viewer), ..config };
        assert_eq!(open.role(&groups(&["other"])), Some(Role::Viewer));
    }
}
