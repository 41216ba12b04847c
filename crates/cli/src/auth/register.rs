//! `kohakuriver auth register`

use kohakuriver_api::{Register, Secret};

use super::login::welcome;
use super::place::{LoginTarget, PlaceArgs};
use crate::ask;
use crate::context::Context;
use crate::error::CommandError;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
The first invitation is printed by the host at its start and makes an admin. All others are made
with `kohakuriver auth invite`. You are logged in afterwards, as by `kohakuriver auth login`.

Examples:
  kohakuriver auth register https://river.lab:8000 --token TOKEN
  echo \"$PASSWORD\" | kohakuriver auth register --token TOKEN --username ann --password-stdin")]
pub struct RegisterArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Invitation token.
    #[arg(long, value_name = "TOKEN")]
    token: String,
    /// User name [default: asks].
    #[arg(short, long, value_name = "NAME", value_parser = kohakuriver_model::account::user_name)]
    username: Option<String>,
    /// Display name [default: the user name].
    #[arg(long, value_name = "TEXT")]
    display_name: Option<String>,
    /// Read the new password from standard input.
    #[arg(long)]
    password_stdin: bool,
}

pub async fn run(context: &Context, args: &RegisterArgs) -> Result<(), CommandError> {
    let place = LoginTarget::with_accounts(context, &args.place).await?;
    place.check_folder()?;
    place.api.may_be_told_secrets().await?;
    let username = match &args.username {
        Some(name) => name.clone(),
        None => {
            let name = ask::line("User name you want", "--username")?;
            kohakuriver_model::account::user_name(&name)
                .map_err(|error| CommandError::usage(error.to_string()))?
        }
    };
    let password = new_password(args.password_stdin)?;
    let body = Register { username, password, display_name: args.display_name.clone() };
    let (logged_in, session) = place.api.register(&args.token, &body).await?;
    if let Err(failure) = place.keep_session(context, &logged_in, &session).await {
        // The invitation is used up: trying it again would not help.
        let name = &logged_in.user.username;
        context
            .out
            .note(format!("the account {name} is created, but this machine is not logged in"));
        return Err(failure.or_hint(|| "kohakuriver auth login".to_owned()));
    }
    welcome(context, &place, &logged_in.user);
    Ok(())
}

pub fn new_password(stdin: bool) -> Result<Secret, CommandError> {
    if stdin {
        return ask::secret_from_stdin();
    }
    ask::new_secret("Password you want (at least 8 characters)", "--password-stdin")
}
