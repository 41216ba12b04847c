//! Logs in again for requests that this machine's token does not permit: a session of the same
//! account that ends right afterwards.

use kohakuriver_api::Login;

use super::browser;
use crate::api::Session;
use crate::ask;
use crate::context::Context;
use crate::error::CommandError;

#[derive(clap::Args, Clone, Debug)]
pub struct AgainArgs {
    /// Read your password from standard input, where one is needed.
    #[arg(long)]
    pub password_stdin: bool,
    /// Log in with your browser at the host's OpenID Connect provider instead of with a password.
    #[arg(long, conflicts_with = "password_stdin")]
    pub browser: bool,
}

/// Opens a session of the account that this machine is logged in as.
pub async fn log_in(context: &Context, args: &AgainArgs) -> Result<Session, CommandError> {
    let me = context.api.me().await?.username;
    if args.browser {
        let (logged_in, session) = browser::log_in(context, &context.api).await?;
        if logged_in.user.username == me {
            return Ok(session);
        }
        context.api.end(&session).await?;
        let other = logged_in.user.username;
        return Err(CommandError::request(format!(
            "the browser is logged in as {other}, and you are {me}"
        )));
    }
    context.api.may_be_told_secrets().await?;
    let password = match args.password_stdin {
        true => ask::secret_from_stdin()?,
        false => ask::secret(&format!("Password of {me}"), "--password-stdin")?,
    };
    Ok(context.api.log_in(&Login { username: me, password }).await?.1)
}

/// Ends the session, or warns that it stays open.
pub async fn end(context: &Context, session: &Session) {
    if let Err(failure) = context.api.end(session).await {
        context.out.note(format!("note: the session was not ended: {}", failure.message));
    }
}
