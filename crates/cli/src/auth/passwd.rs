//! `kohakuriver auth passwd` and `kohakuriver auth reset`

use kohakuriver_api::{ChangePassword, ResetPassword, Secret};

use super::login::welcome;
use super::place::{LoginTarget, PlaceArgs};
use super::register::new_password;
use crate::ask;
use crate::context::Context;
use crate::error::CommandError;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
All browsers you are logged in with have to log in again; tokens and registered SSH keys stay, unless
--end-tokens says otherwise. Say it where somebody else may have known the old password.

Examples:
  kohakuriver auth passwd
  kohakuriver auth passwd --end-tokens
  printf '%s\\n%s\\n' \"$OLD\" \"$NEW\" | kohakuriver auth passwd --password-stdin")]
pub struct PasswdArgs {
    /// Read the old and then the new password from standard input, one per line.
    #[arg(long)]
    password_stdin: bool,
    /// Also revoke all your API tokens and remove all your SSH keys; this machine gets a new token.
    #[arg(long)]
    end_tokens: bool,
}

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
An admin makes the token: kohakuriver auth user reset NAME. You are logged in afterwards.

Examples:
  kohakuriver auth reset --token TOKEN
  kohakuriver auth reset https://river.lab:8000 --token TOKEN")]
pub struct ResetArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Reset token from an admin.
    #[arg(long, value_name = "TOKEN")]
    token: String,
    /// Read the new password from standard input.
    #[arg(long)]
    password_stdin: bool,
    /// Also revoke all your API tokens and remove all your SSH keys.
    #[arg(long)]
    end_tokens: bool,
}

pub async fn run(context: &Context, args: &PasswdArgs) -> Result<(), CommandError> {
    context.api.may_be_told_secrets().await?;
    let (old_password, new_password) = match args.password_stdin {
        true => {
            let mut input = std::io::stdin().lock();
            let old = ask::secret_line(&mut input)?;
            (old, ask::secret_line(&mut input)?)
        }
        false => {
            let old = ask::secret("Password you have", "--password-stdin")?;
            (old, new_password(false)?)
        }
    };
    let body = ChangePassword { old_password, new_password, end_tokens: args.end_tokens };
    // Before anything changes: can the new token be kept?
    let place = match args.end_tokens {
        true => Some(LoginTarget::usual(context)?),
        false => None,
    };
    let (logged_in, session) = context.api.change_password(&body).await?;
    match place {
        Some(place) => place.keep_session(context, &logged_in, &session).await?,
        // The session it begins is for browsers.
        None => {
            if let Err(failure) = context.api.end(&session).await {
                context.out.note(format!("note: the session was not ended: {}", failure.message));
            }
        }
    }
    if context.out.json {
        context.out.json(&logged_in);
    } else {
        context.out.line(format!("the password of {} is changed", logged_in.user.username));
        if !args.end_tokens {
            context
                .out
                .hint("tokens and SSH keys that were made with the old one stay: --end-tokens");
        }
    }
    Ok(())
}

pub async fn reset(context: &Context, args: &ResetArgs) -> Result<(), CommandError> {
    let place = LoginTarget::with_accounts(context, &args.place).await?;
    place.check_folder()?;
    place.api.may_be_told_secrets().await?;
    let new_password = new_password(args.password_stdin)?;
    let body = ResetPassword {
        token: Secret(args.token.clone()),
        new_password,
        end_tokens: args.end_tokens,
    };
    let (logged_in, session) = place.api.reset_password(&body).await?;
    place.keep_session(context, &logged_in, &session).await?;
    welcome(context, &place, &logged_in.user);
    Ok(())
}
