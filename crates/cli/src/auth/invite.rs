//! `kohakuriver auth invite`

use clap::builder::PossibleValuesParser;
use clap_complete::ArgValueCandidates;
use jiff::Timestamp;
use kohakuriver_api::CreateInvitation;

use super::{ROLES, group};
use crate::complete;
use crate::context::Context;
use crate::duration;
use crate::error::CommandError;
use crate::ui::until;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
An operator invites viewers, an admin everybody. The invitation alone goes to standard output; the
command to send with it is shown too.

Examples:
  kohakuriver auth invite                                  one person, a user
  kohakuriver auth invite --role operator --expires 1d
  kohakuriver auth invite --group students --uses 20 --expires 2w")]
pub struct InviteArgs {
    /// Role of the new accounts.
    #[arg(long, default_value = "user", value_parser = PossibleValuesParser::new(ROLES))]
    role: String,
    /// Group of the new accounts.
    #[arg(long, value_name = "GROUP", add = ArgValueCandidates::new(complete::groups))]
    group: Option<String>,
    /// Number of accounts that may use it.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    uses: u32,
    /// How long it is valid.
    #[arg(long, value_name = "TIME", default_value = "72h", value_parser = duration::hours)]
    expires: u32,
}

pub async fn run(context: &Context, args: &InviteArgs) -> Result<(), CommandError> {
    let group_id = match &args.group {
        Some(name) => Some(group::find(context, name).await?.id),
        None => None,
    };
    let body = CreateInvitation {
        role: args.role.clone(),
        group_id,
        max_usage: args.uses,
        expires_hours: args.expires,
    };
    let made = context.api.invite(&body).await?;
    if context.out.json {
        context.out.json(&made);
        return Ok(());
    }
    let token = made.token.0;
    context.out.line(&token);
    let people = match args.uses {
        1 => "its holder".to_owned(),
        count => format!("up to {count} accounts"),
    };
    let group = args.group.as_ref().map(|name| format!(" of {name}")).unwrap_or_default();
    let lasts = until(&made.expires_at, Timestamp::now());
    // Whoever got this line from somebody they trust has nothing left to compare.
    let believed = context.api.pinned_fingerprint().map(|is| format!(" --fingerprint {is}"));
    context.out.note(format!(
        "makes {people} a {}{group}, expires {lasts}; with the program:\n  kohakuriver auth register {} --token {token}{}",
        made.role,
        context.api.url(),
        believed.unwrap_or_default(),
    ));
    Ok(())
}
