//! `kohakuriver auth whoami`

use jiff::Timestamp;

use super::login::is_somebody;
use crate::context::Context;
use crate::credentials::{self, Credential};
use crate::error::{CommandError, Kind};
use crate::ui::{Panel, Tone, until};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Ends with 1 where the host does not know who you are.

Examples:
  kohakuriver auth whoami
  kohakuriver auth whoami --json | jq -r .role")]
pub struct WhoamiArgs {}

pub async fn run(context: &Context) -> Result<(), CommandError> {
    let api = &context.api;
    let status = api.auth_status().await?;
    if !status.auth_enabled {
        if context.out.json {
            context.out.json(&status);
            return Ok(());
        }
        let mut panel = Panel::default();
        panel.add("host", api.url()).add("user", "none: accounts are off");
        panel.add("role", "every client has full access").print(context.out);
        return Ok(());
    }
    let user = match api.me().await {
        Ok(user) if is_somebody(&user) => user,
        Ok(_) => return Err(not_logged_in(context)?),
        Err(failure) if failure.kind == Kind::LogIn => return Err(not_logged_in(context)?),
        Err(failure) => return Err(failure),
    };
    if context.out.json {
        context.out.json(&user);
        return Ok(());
    }
    let mut panel = Panel::default();
    panel.add("host", api.url()).add("user", &user.username);
    panel.maybe("name", user.display_name.filter(|name| *name != user.username));
    panel.add("role", &user.role);
    let (tone, text) = token(context).await?;
    panel.tinted("token", tone, text).print(context.out);
    Ok(())
}

fn kept(context: &Context) -> Result<Option<Credential>, CommandError> {
    match &context.settings.folder {
        Some(folder) => credentials::load(folder, &context.api.place()),
        None => Ok(None),
    }
}

/// Describes this machine's token and its remaining lifetime.
async fn token(context: &Context) -> Result<(Tone, String), CommandError> {
    if context.settings.token.is_some() {
        return Ok((Tone::Plain, "of KOHAKURIVER_TOKEN".to_owned()));
    }
    let Some(id) = kept(context)?.and_then(|known| known.id) else {
        return Ok((Tone::Plain, "created elsewhere, stored on this machine".to_owned()));
    };
    // A courtesy: a token of a lower role may not be allowed to list.
    let tokens = context.api.tokens().await.unwrap_or_default();
    let Some(token) = tokens.into_iter().find(|token| token.id == id) else {
        return Ok((Tone::Plain, "stored on this machine".to_owned()));
    };
    let name = token.name;
    let Some(end) = token.expires_at else {
        return Ok((Tone::Plain, format!("'{name}', does not expire")));
    };
    let soon = end
        .parse::<Timestamp>()
        .is_ok_and(|end| end.as_second() - Timestamp::now().as_second() < 7 * 86_400);
    let tone = if soon { Tone::Busy } else { Tone::Plain };
    Ok((tone, format!("'{name}', expires {}", until(&end, Timestamp::now()))))
}

fn not_logged_in(context: &Context) -> Result<CommandError, CommandError> {
    let at = context.api.place();
    let told = context.settings.token.is_some();
    let failure = match (told, kept(context)?) {
        (true, _) => {
            CommandError::request(format!("{at} does not accept the token of KOHAKURIVER_TOKEN"))
                .hint("unset KOHAKURIVER_TOKEN, or give it another")
        }
        (false, Some(_)) => CommandError::request(format!(
            "the log-in at {at} is over: its token expired or was revoked"
        ))
        .hint("kohakuriver auth login"),
        (false, None) => {
            CommandError::request(format!("not logged in to {at}")).hint("kohakuriver auth login")
        }
    };
    Ok(failure)
}
