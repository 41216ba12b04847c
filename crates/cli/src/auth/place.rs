//! The host that a login is for: found, trusted, and stored with a token.

use kohakuriver_api::{CreateToken, LoggedIn};

use super::file;
use crate::api::{Api, Session};
use crate::context::Context;
use crate::credentials::{self, Credential};
use crate::error::CommandError;
use crate::identity;
use crate::settings::{Setting, Settings, Source};
use crate::{GlobalArgs, duration};

/// The port of a URL that has none.
const DEFAULT_PORT: u16 = 8000;
/// How long a machine stays logged in by default.
const USUAL_HOURS: u32 = 90 * 24;

#[derive(clap::Args, Clone, Debug)]
pub struct PlaceArgs {
    /// Host, which becomes this machine's default: https://host:port.
    #[arg(value_name = "URL")]
    url: Option<String>,
    /// Trust a host whose own CA has this fingerprint, without asking.
    #[arg(long, value_name = "SHA256", value_parser = fingerprint)]
    fingerprint: Option<String>,
    /// Trust a host that is new to this machine, whatever its fingerprint.
    #[arg(short, long)]
    yes: bool,
    /// How long this machine stays logged in.
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = duration::hours)]
    expires: u32,
}

/// A host that accepts logins.
pub struct LoginTarget {
    pub api: Api,
    settings: Settings,
    named: bool,
    expires: u32,
}

impl LoginTarget {
    /// Establishes trust in the host, with the user's confirmation where it is needed.
    pub async fn find(context: &Context, args: &PlaceArgs) -> Result<Self, CommandError> {
        let settings = match &args.url {
            Some(url) => settings(context, url)?,
            None => context.settings.clone(),
        };
        let api = believe(context, Api::new(&settings), args).await?;
        Ok(Self { api, settings, named: args.url.is_some(), expires: args.expires })
    }

    /// Returns the host that is in use already.
    pub fn usual(context: &Context) -> Result<Self, CommandError> {
        let place = Self {
            api: context.api.clone(),
            settings: context.settings.clone(),
            named: false,
            expires: USUAL_HOURS,
        };
        place.check_folder()?;
        Ok(place)
    }

    /// Returns the same, and fails where the host has no accounts.
    pub async fn with_accounts(context: &Context, args: &PlaceArgs) -> Result<Self, CommandError> {
        let place = Self::find(context, args).await?;
        if !place.api.auth_status().await?.auth_enabled {
            return Err(CommandError::request(format!(
                "the host {} has no accounts: every client has full access",
                place.api.place()
            ))
            .hint("accounts begin with `kohakuriver host --auth`"));
        }
        Ok(place)
    }

    /// Stores the credential of this machine: a token of its own, created with the session, which
    /// then ends.
    pub async fn keep_session(
        &self,
        context: &Context,
        logged_in: &LoggedIn,
        session: &Session,
    ) -> Result<(), CommandError> {
        let body = CreateToken {
            name: format!("cli on {}", identity::machine()),
            expires_hours: Some(self.expires),
            ..CreateToken::default()
        };
        let made = self.api.token_of(session, &body).await;
        // Also where no token could be made: nothing keeps the session.
        if let Err(failure) = self.api.end(session).await {
            context.out.note(format!("note: the session was not ended: {}", failure.message));
        }
        let made = made?;
        let token =
            made.token.0.parse().map_err(|_| CommandError::request("the token is no token"))?;
        self.keep(
            context,
            Credential { token, user: Some(logged_in.user.username.clone()), id: Some(made.id) },
        )
        .await
    }

    /// Stores a token for this host in place of the previous one.
    pub async fn keep(
        &self,
        context: &Context,
        credential: Credential,
    ) -> Result<(), CommandError> {
        let folder = self.settings.folder.as_deref().ok_or_else(no_folder)?;
        let before = credentials::load(folder, &self.api.place())?;
        let id = credential.id;
        credentials::store(folder, &self.api.place(), credential)?;
        // Nobody has it any more. This way still shows it to the host.
        if let Some(old) = before.and_then(|before| before.id).filter(|old| Some(*old) != id) {
            match self.api.revoke_token(old).await {
                Ok(answer) => note_derived(context, &answer),
                Err(failure) => {
                    tracing::debug!(failure = failure.message, "the old token was not revoked");
                }
            }
        }
        if self.named {
            file::set_host(&self.api.url())?;
            let variables = ["KOHAKURIVER_HOST", "KOHAKURIVER_PORT"];
            let set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
            for name in variables.iter().filter(|name| set(name)) {
                context.out.note(format!("note: {name} is set, and beats the configuration file"));
            }
        }
        if self.settings.token.is_some() {
            context.out.note("note: KOHAKURIVER_TOKEN is set, and beats what is kept");
        }
        Ok(())
    }

    /// Fails before any question where no credential could be stored.
    pub fn check_folder(&self) -> Result<(), CommandError> {
        self.settings.folder.as_ref().map(|_| ()).ok_or_else(no_folder)
    }

    /// Makes the host this machine's default where it has no accounts.
    pub fn remember(&self) -> Result<(), CommandError> {
        if self.named { file::set_host(&self.api.url()) } else { Ok(()) }
    }
}

/// Reports which tokens ended together with this machine's token.
pub fn note_derived(context: &Context, answer: &serde_json::Value) {
    let said = answer["message"].as_str().unwrap_or_default();
    if let Some(more) = said.strip_prefix("Token revoked, and ") {
        context.out.note(format!("note: with this machine's last token ended {more}"));
    }
}

pub fn no_folder() -> CommandError {
    CommandError::usage("there is no home folder to keep who you are in")
        .hint("set HOME, or KOHAKURIVER_CONFIG to the configuration file's path")
}

/// Applies the URL as if it were given with `--host`, but without a port that was set for another
/// host.
fn settings(context: &Context, url: &str) -> Result<Settings, CommandError> {
    let flags = GlobalArgs { host: Some(url.to_owned()), ..GlobalArgs::default() };
    let mut settings = Settings::load(&flags, &|name| std::env::var(name).ok())?;
    if context.settings.port.source == Source::Flag("--port") {
        settings.port = context.settings.port.clone();
    } else if settings.port.source != Source::Flag("--host") {
        settings.port = Setting { value: DEFAULT_PORT, source: Source::Default };
    }
    Ok(settings)
}

async fn believe(context: &Context, api: Api, args: &PlaceArgs) -> Result<Api, CommandError> {
    if let Some(expected) = &args.fingerprint {
        if !api.is_https() {
            return Err(CommandError::usage("only a host reached by https has a fingerprint")
                .hint(api.url().replacen("http:", "https:", 1)));
        }
        let ca = api.fetch_ca().await?;
        if ca.fingerprint != *expected {
            return Err(CommandError::distrusted(format!(
                "the CA of {} has the fingerprint {}, which is another one",
                api.url(),
                ca.fingerprint
            ))
            .hint("the connection may be intercepted: ask the host's operator"));
        }
        return api.pin(&ca.ca_pem);
    }
    if !api.is_https() {
        return Ok(api);
    }
    let Some(doubt) = api.doubt().await? else { return Ok(api) };
    let ca = api.fetch_ca().await?;
    context.out.note(&doubt.message);
    let known = api.is_pinned();
    if args.yes && !known {
        return api.pin(&ca.ca_pem);
    }
    let question = if known {
        "Was the host set up anew, and did its operator tell you this fingerprint?"
    } else {
        "Is that the fingerprint the host showed at its start?"
    };
    if context.out.confirm(question, &format!("--fingerprint {}", ca.fingerprint))? {
        return api.pin(&ca.ca_pem);
    }
    Err(CommandError::distrusted("nothing was sent to that host")
        .hint("its operator finds the fingerprint in the first lines of `kohakuriver host`"))
}

/// Parses 64 hexadecimal digits, also with colons and in capitals.
fn fingerprint(text: &str) -> Result<String, String> {
    let digits: String =
        text.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
    if digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(digits);
    }
    Err("a fingerprint has 64 hexadecimal digits".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_is_parsed_as_openssl_prints_it() {
        let plain = "0f".repeat(32);
        assert_eq!(fingerprint(&plain), Ok(plain.clone()));
        assert_eq!(fingerprint(&["0F"; 32].join(":")), Ok(plain.clone()));
        for bad in ["", "0f", &"zz".repeat(32), &format!("{plain}0")] {
            assert!(fingerprint(bad).is_err(), "{bad:?}");
        }
    }
}
