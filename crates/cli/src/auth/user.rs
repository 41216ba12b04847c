//! `kohakuriver auth user`: an admin's view of one account.

use clap::builder::PossibleValuesParser;
use clap_complete::ArgValueCandidates;
use jiff::Timestamp;
use kohakuriver_api::{UpdateUser, User};

use super::users::{find, log_in, state};
use super::{ROLES, quota};
use crate::complete;
use crate::context::Context;
use crate::duration;
use crate::error::CommandError;
use crate::ui::{Panel, ago, until};

#[derive(clap::Subcommand, Clone, Debug)]
pub enum UserCommand {
    /// Show an account, its groups and its usage.
    Show(NameArgs),
    /// Set an account's role.
    Role(RoleArgs),
    /// Disable an account; its open sessions end within seconds.
    Disable(AskArgs),
    /// Enable an account again.
    Enable(NameArgs),
    /// Delete an account; its name may be used again, its id never.
    #[command(visible_alias = "rm")]
    Delete(AskArgs),
    /// Create a token that sets a new password.
    Reset(ResetArgs),
}

#[derive(clap::Args, Clone, Debug)]
pub struct NameArgs {
    /// User name.
    #[arg(value_name = "NAME", add = ArgValueCandidates::new(complete::users))]
    name: String,
}

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
  viewer     looks, and touches nothing
  user       has VPSes, once an operator agreed
  operator   makes VPSes, decides on others' requests, runs the nodes
  admin      everything, accounts too

Examples:
  kohakuriver auth user role ann operator")]
pub struct RoleArgs {
    /// User name.
    #[arg(value_name = "NAME", add = ArgValueCandidates::new(complete::users))]
    name: String,
    /// New role.
    #[arg(value_parser = PossibleValuesParser::new(ROLES))]
    role: String,
}

#[derive(clap::Args, Clone, Debug)]
pub struct AskArgs {
    /// User name.
    #[arg(value_name = "NAME", add = ArgValueCandidates::new(complete::users))]
    name: String,
    /// Do not ask for confirmation.
    #[arg(short, long)]
    yes: bool,
}

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
The token alone goes to standard output; the command to send with it is shown too.

Examples:
  kohakuriver auth user reset ann
  kohakuriver auth user reset ann --expires 2h")]
pub struct ResetArgs {
    /// User name.
    #[arg(value_name = "NAME", add = ArgValueCandidates::new(complete::users))]
    name: String,
    /// How long the token is valid [default: set by the host].
    #[arg(long, value_name = "TIME", value_parser = duration::hours)]
    expires: Option<u32>,
}

pub async fn run(context: &Context, command: UserCommand) -> Result<(), CommandError> {
    match command {
        UserCommand::Show(args) => show(context, &args.name).await,
        UserCommand::Role(args) => role(context, &args).await,
        UserCommand::Disable(args) => disable(context, &args).await,
        UserCommand::Enable(args) => {
            let user = find(context, &args.name).await?;
            let user = context.api.change_user(user.id, &active(true)).await?;
            say(context, &user, "is enabled");
            Ok(())
        }
        UserCommand::Delete(args) => delete(context, &args).await,
        UserCommand::Reset(args) => reset(context, &args).await,
    }
}

fn active(is_active: bool) -> UpdateUser {
    UpdateUser { is_active: Some(is_active), ..UpdateUser::default() }
}

fn say(context: &Context, user: &User, what: &str) {
    if context.out.json {
        context.out.json(user);
    } else {
        context.out.line(format!("{} {what}", user.username));
    }
}

async fn show(context: &Context, name: &str) -> Result<(), CommandError> {
    let user = find(context, name).await?;
    if context.out.json {
        context.out.json(&user);
        return Ok(());
    }
    let report = context.api.quota_of(user.id).await?;
    let mut panel = Panel::default();
    panel.add("user", &user.username).add("id", user.id.to_string());
    panel.maybe("shown as", user.display_name.as_deref()).add("role", &user.role);
    let (tone, text) = state(&user);
    panel.tinted("state", tone, text).add("logs in by", log_in(&user));
    let groups: Vec<&str> = report.groups.iter().map(|group| group.name.as_str()).collect();
    panel.maybe("groups", (!groups.is_empty()).then(|| groups.join(" ")));
    let now = Timestamp::now();
    panel.maybe("created", user.created_at.map(|time| format!("{time} ({})", ago(&time, now))));
    panel.print(context.out);
    context.out.line("");
    quota::grid(&report).print(context.out);
    Ok(())
}

async fn role(context: &Context, args: &RoleArgs) -> Result<(), CommandError> {
    let user = find(context, &args.name).await?;
    let change = UpdateUser { role: Some(args.role.clone()), ..UpdateUser::default() };
    let user = context.api.change_user(user.id, &change).await?;
    say(context, &user, &format!("is {} now", user.role));
    Ok(())
}

async fn disable(context: &Context, args: &AskArgs) -> Result<(), CommandError> {
    let user = find(context, &args.name).await?;
    let question = format!(
        "Disable {} ({})? All their sessions end, their VPSes go on running.",
        user.username, user.role
    );
    if !args.yes && !context.out.confirm(&question, "--yes")? {
        context.out.note("nothing was changed");
        return Ok(());
    }
    let user = context.api.change_user(user.id, &active(false)).await?;
    say(context, &user, "is disabled");
    Ok(())
}

async fn delete(context: &Context, args: &AskArgs) -> Result<(), CommandError> {
    let user = find(context, &args.name).await?;
    let question = format!(
        "Delete the account {} ({}) with its tokens, keys and shares?",
        user.username, user.role
    );
    if !args.yes && !context.out.confirm(&question, "--yes")? {
        context.out.note("nothing was deleted");
        return Ok(());
    }
    let answer = context.api.delete_user(user.id).await?;
    if context.out.json {
        context.out.json(&answer);
    } else {
        context.out.line(format!("the account {} is deleted", user.username));
    }
    Ok(())
}

async fn reset(context: &Context, args: &ResetArgs) -> Result<(), CommandError> {
    let user = find(context, &args.name).await?;
    let made = context.api.create_reset(user.id, args.expires).await?;
    if context.out.json {
        context.out.json(&made);
        return Ok(());
    }
    let token = &made.token.0;
    context.out.line(token);
    let lasts = until(&made.expires_at, Timestamp::now());
    context.out.note(format!(
        "lets {} choose a password, once, expires {lasts}; with the program:\n  kohakuriver auth reset {} --token {token}",
        user.username,
        context.api.url(),
    ));
    Ok(())
}
