//! `kohakuriver auth invitations`

use jiff::Timestamp;
use kohakuriver_api::{Group, Invitation};

use crate::context::Context;
use crate::error::CommandError;
use crate::ui::{Fit, Grid, Tone, until};
use crate::vps::print_json;

#[derive(clap::Args, Clone, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  kohakuriver auth invitations
  kohakuriver auth invitations revoke 3"
)]
pub struct InvitationsArgs {
    #[command(subcommand)]
    command: Option<InvitationsCommand>,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum InvitationsCommand {
    /// List invitations.
    #[command(visible_alias = "ls")]
    List,
    /// Revoke invitations; accounts created with them stay.
    #[command(visible_alias = "rm")]
    Revoke {
        /// Ids of invitations.
        #[arg(required = true, value_name = "ID")]
        ids: Vec<i64>,
    },
}

pub async fn run(context: &Context, args: &InvitationsArgs) -> Result<(), CommandError> {
    match &args.command {
        None | Some(InvitationsCommand::List) => list(context).await,
        Some(InvitationsCommand::Revoke { ids }) => revoke(context, ids).await,
    }
}

async fn list(context: &Context) -> Result<(), CommandError> {
    let invitations = context.api.invitations().await?;
    if context.out.json {
        context.out.json(&invitations);
        return Ok(());
    }
    if invitations.is_empty() {
        context.out.note("there are no invitations");
        context.out.hint("`kohakuriver auth invite` makes one");
        return Ok(());
    }
    // Only for their names.
    let groups = match invitations.iter().any(|one| one.group_id.is_some()) {
        true => context.api.groups().await?,
        false => Vec::new(),
    };
    grid(&invitations, &groups, Timestamp::now()).print(context.out);
    Ok(())
}

fn grid(invitations: &[Invitation], groups: &[Group], now: Timestamp) -> Grid {
    let mut grid = Grid::new(&[
        ("ID", Fit::Whole),
        ("ROLE", Fit::Whole),
        ("GROUP", Fit::Cut),
        ("USED", Fit::Whole),
        ("STATE", Fit::Whole),
        ("EXPIRES", Fit::Cut),
    ]);
    for one in invitations {
        let group = groups.iter().find(|group| Some(group.id) == one.group_id);
        let state = match (one.is_valid, one.remaining_uses) {
            (true, _) => (Tone::Good, "open"),
            (false, 0) => (Tone::Quiet, "used up"),
            (false, _) => (Tone::Quiet, "expired"),
        };
        grid.row(vec![
            (Tone::Plain, one.id.to_string()),
            (Tone::Plain, one.role.clone()),
            (Tone::Plain, group.map(|group| group.name.clone()).unwrap_or_default()),
            (Tone::Plain, format!("{}/{}", one.usage_count, one.max_usage)),
            (state.0, state.1.to_owned()),
            (Tone::Plain, until(&one.expires_at, now)),
        ]);
    }
    grid
}

async fn revoke(context: &Context, ids: &[i64]) -> Result<(), CommandError> {
    let mut answers = Vec::new();
    for id in ids {
        let answer = context.api.revoke_invitation(*id).await;
        answers.push(answer.map_err(|failure| {
            failure.or_hint(|| "`kohakuriver auth invitations` shows all".to_owned())
        })?);
        if !context.out.json {
            context.out.line(format!("invitation {id} is revoked"));
        }
    }
    if context.out.json {
        print_json(context, ids.len(), answers);
    }
    Ok(())
}
