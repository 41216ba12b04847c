//! `kohakuriver auth login`

use kohakuriver_api::{Login, Secret, User};

use super::browser;
use super::place::{LoginTarget, PlaceArgs};
use crate::ask;
use crate::context::Context;
use crate::credentials::Credential;
use crate::error::CommandError;

/// The user name that a host reports for a request without a valid credential.
const NOBODY: &str = "_anonymous";

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
With your name and password this machine gets a token of its own, named after it, and keeps that:
`kohakuriver auth token list` shows it, `kohakuriver auth logout` revokes it. A host with a CA of
its own shows its fingerprint first; it is believed from then on, and no other CA for that host.

Examples:
  kohakuriver auth login https://river.lab:8000
  kohakuriver auth login https://river.lab:8000 --fingerprint 5d1c...  without a question
  pass show river | kohakuriver auth login --username ann --password-stdin
  kohakuriver auth login https://river.lab:8000 --browser      where the lab has a provider
  echo \"$TOKEN\" | kohakuriver auth login --token-stdin               with a token made elsewhere")]
pub struct LoginArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// User name on the host [default: asks].
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// Read the password from standard input.
    #[arg(long)]
    password_stdin: bool,
    /// Read a token from standard input, and store it for this machine.
    #[arg(long, conflicts_with_all = ["username", "password_stdin", "browser"])]
    token_stdin: bool,
    /// Log in with a browser at the host's OpenID Connect provider.
    #[arg(long, conflicts_with_all = ["username", "password_stdin"])]
    browser: bool,
}

pub async fn run(context: &Context, args: &LoginArgs) -> Result<(), CommandError> {
    let place = LoginTarget::find(context, &args.place).await?;
    let status = place.api.auth_status().await?;
    if !status.auth_enabled {
        place.remember()?;
        if context.out.json {
            context.out.json(&status);
        } else {
            context.out.note(format!(
                "{} has no accounts: every client has full access",
                place.api.place()
            ));
        }
        return Ok(());
    }
    place.check_folder()?;
    if args.token_stdin {
        return with_token(context, &place).await;
    }
    if args.browser {
        if !status.oidc {
            return Err(CommandError::request("this host has no OpenID Connect provider")
                .hint("log in with a password: kohakuriver auth login"));
        }
        let (logged_in, session) = browser::log_in(context, &place.api).await?;
        place.keep_session(context, &logged_in, &session).await?;
        welcome(context, &place, &logged_in.user);
        return Ok(());
    }
    if status.needs_setup {
        return Err(CommandError::request(format!(
            "{} has no accounts yet, not even an admin",
            place.api.place()
        ))
        .hint(
            "the host printed an invitation at its start: kohakuriver auth register --token TOKEN",
        ));
    }
    if status.oidc && args.username.is_none() {
        context.out.hint("`kohakuriver auth login --browser` logs in at the host's provider");
    }
    place.api.may_be_told_secrets().await?;
    let username = match &args.username {
        Some(name) => name.clone(),
        None => ask::line("User name", "--username")?,
    };
    let password = match args.password_stdin {
        true => ask::secret_from_stdin()?,
        false => ask::secret("Password", "--password-stdin")?,
    };
    let (logged_in, session) = place.api.log_in(&Login { username, password }).await?;
    place.keep_session(context, &logged_in, &session).await?;
    welcome(context, &place, &logged_in.user);
    Ok(())
}

async fn with_token(context: &Context, place: &LoginTarget) -> Result<(), CommandError> {
    place.api.may_be_told_secrets().await?;
    let Secret(text) = ask::secret_from_stdin()?;
    let token: crate::settings::Token =
        text.parse().map_err(|error| CommandError::usage(format!("{error}")))?;
    let user = place.api.with_token(&token).me().await?;
    if user.username == NOBODY {
        return Err(CommandError::request(format!(
            "the host {} does not accept this token; it may have expired",
            place.api.place()
        ))
        .hint("`kohakuriver auth token create NAME` makes one where you are logged in"));
    }
    let name = Some(user.username.clone());
    place.keep(context, Credential { token, user: name, id: None }).await?;
    welcome(context, place, &user);
    Ok(())
}

/// Prints the account that this machine is logged in as.
pub fn welcome(context: &Context, place: &LoginTarget, user: &User) {
    if context.out.json {
        context.out.json(user);
        return;
    }
    let (name, role) = (&user.username, &user.role);
    context.out.line(format!("logged in to {} as {name} ({role})", place.api.place()));
}

/// Returns whether the account is not the anonymous one.
pub fn is_somebody(user: &User) -> bool {
    user.username != NOBODY
}
