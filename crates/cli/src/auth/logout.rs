//! `kohakuriver auth logout`

use super::place;
use crate::context::Context;
use crate::credentials;
use crate::error::{CommandError, Kind};
use crate::ssh::certificate;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
The token this machine got at its log-in is revoked. One that was made elsewhere is only forgotten.

Examples:
  kohakuriver auth logout
  kohakuriver auth logout --host https://river.lab:8000")]
pub struct LogoutArgs {}

pub async fn run(context: &Context) -> Result<(), CommandError> {
    let folder = context.settings.folder.as_deref().ok_or_else(place::no_folder)?;
    let at = context.api.place();
    let Some(known) = credentials::load(folder, &at)? else {
        context.out.note(format!("this machine was not logged in to {at}"));
        if context.settings.token.is_some() {
            context.out.hint("KOHAKURIVER_TOKEN is still in use: unset KOHAKURIVER_TOKEN");
        }
        return Ok(());
    };
    let revoked = match known.id {
        Some(id) => context.api.with_token(&known.token).revoke_token(id).await,
        None => Ok(serde_json::Value::Null),
    };
    // Whatever the host says, this machine does not keep it.
    credentials::remove(folder, &at)?;
    certificate::forget_all()?;
    match revoked {
        Ok(answer) if context.out.json => context.out.json(&answer),
        Ok(answer) => place::note_derived(context, &answer),
        // It was revoked or had expired before.
        Err(failure) if failure.kind == Kind::NotFound => {}
        Err(failure) => {
            context.out.note(format!("note: the token was not revoked: {}", failure.message));
            context.out.hint("`kohakuriver auth token list` shows it where you are logged in");
        }
    }
    if known.id.is_none() {
        context.out.note("note: the token was made elsewhere, and is as good as before");
        context.out.hint("`kohakuriver auth token revoke` ends it");
    }
    if !context.out.json {
        context.out.line(format!("logged out of {at}"));
    }
    Ok(())
}
