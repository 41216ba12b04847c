//! `kohakuriver auth group`: accounts that share a quota and a rule for automatic approval.

use clap_complete::ArgValueCandidates;
use kohakuriver_api::{Group, Quota, UpdateGroup};

use super::limits::{LimitArgs, words};
use super::users;
use crate::complete;
use crate::context::Context;
use crate::error::{CommandError, Kind};
use crate::ui::{Fit, Grid, Tone};
use crate::vps::print_json;

#[derive(clap::Subcommand, Clone, Debug)]
pub enum GroupCommand {
    /// List groups, their members and their limits.
    #[command(visible_alias = "ls")]
    List,
    /// Create a group.
    Create(NameArgs),
    /// Delete a group; its members stay.
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
    /// Add accounts to a group.
    Add(MemberArgs),
    /// Remove accounts from a group.
    Remove(MemberArgs),
    /// Show and set the quota of all members together.
    Quota(Box<QuotaArgs>),
    /// Set the requests of members that need no operator's approval.
    AutoApprove(Box<AutoApproveArgs>),
}

#[derive(clap::Args, Clone, Debug)]
pub struct NameArgs {
    /// Name of the group.
    #[arg(value_name = "GROUP", value_parser = kohakuriver_model::account::group_name)]
    group: String,
}

#[derive(clap::Args, Clone, Debug)]
pub struct DeleteArgs {
    /// Name of the group.
    #[arg(value_name = "GROUP", add = ArgValueCandidates::new(complete::groups))]
    group: String,
    /// Do not ask for confirmation.
    #[arg(short, long)]
    yes: bool,
}

#[derive(clap::Args, Clone, Debug)]
pub struct MemberArgs {
    /// Name of the group.
    #[arg(value_name = "GROUP", add = ArgValueCandidates::new(complete::groups))]
    group: String,
    /// User names.
    #[arg(required = true, value_name = "USER", add = ArgValueCandidates::new(complete::users))]
    users: Vec<String>,
}

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver auth group quota students
  kohakuriver auth group quota students --cores 64 --memory 256G --gpus 4
  kohakuriver auth group quota students --gpus none               no limit any more")]
pub struct QuotaArgs {
    /// Name of the group.
    #[arg(value_name = "GROUP", add = ArgValueCandidates::new(complete::groups))]
    group: String,
    #[command(flatten)]
    limits: LimitArgs,
}

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
A member who would then hold no more than this gets a VPS at once. What is not named has no limit
here; the quotas count all the same.

Examples:
  kohakuriver auth group auto-approve students --instances 1 --cores 4 --memory 8G --gpus 0
  kohakuriver auth group auto-approve students --off")]
pub struct AutoApproveArgs {
    /// Name of the group.
    #[arg(value_name = "GROUP", add = ArgValueCandidates::new(complete::groups))]
    group: String,
    #[command(flatten)]
    limits: LimitArgs,
    /// Require an operator's approval for every request again.
    #[arg(long)]
    off: bool,
}

pub async fn run(context: &Context, command: GroupCommand) -> Result<(), CommandError> {
    match command {
        GroupCommand::List => list(context).await,
        GroupCommand::Create(args) => {
            let group = context.api.create_group(&args.group).await?;
            say(context, &group, "is made");
            Ok(())
        }
        GroupCommand::Delete(args) => delete(context, &args).await,
        GroupCommand::Add(args) => members(context, &args, true).await,
        GroupCommand::Remove(args) => members(context, &args, false).await,
        GroupCommand::Quota(args) => quota(context, &args).await,
        GroupCommand::AutoApprove(args) => auto_approve(context, &args).await,
    }
}

/// Finds a group by its name.
pub async fn find(context: &Context, name: &str) -> Result<Group, CommandError> {
    let groups = context.api.groups().await?;
    groups.into_iter().find(|group| group.name == name).ok_or_else(|| {
        let failure = CommandError::request(format!("there is no group '{name}'"))
            .hint("`kohakuriver auth group list` shows all groups");
        CommandError { kind: Kind::NotFound, ..failure }
    })
}

fn say(context: &Context, group: &Group, what: &str) {
    if context.out.json {
        context.out.json(group);
    } else {
        context.out.line(format!("group {} {what}", group.name));
    }
}

async fn list(context: &Context) -> Result<(), CommandError> {
    let groups = context.api.groups().await?;
    if context.out.json {
        context.out.json(&groups);
        return Ok(());
    }
    if groups.is_empty() {
        context.out.note("there are no groups");
        context.out.hint("`kohakuriver auth group create NAME` makes one");
        return Ok(());
    }
    let mut grid = Grid::new(&[
        ("GROUP", Fit::Whole),
        ("MEMBERS", Fit::Cut),
        ("QUOTA", Fit::Cut),
        ("WITHOUT APPROVAL", Fit::Cut),
    ]);
    for group in &groups {
        let members: Vec<&str> = group.members.iter().map(|one| one.username.as_str()).collect();
        let alone = group.auto_approve.as_ref().map_or_else(|| "nothing".to_owned(), words);
        let quota = match group.quota == Quota::default() {
            true => "none".to_owned(),
            false => words(&group.quota),
        };
        let row = [group.name.clone(), members.join(" "), quota, alone];
        grid.row(row.map(|cell| (Tone::Plain, cell)).to_vec());
    }
    grid.print(context.out);
    Ok(())
}

async fn delete(context: &Context, args: &DeleteArgs) -> Result<(), CommandError> {
    let group = find(context, &args.group).await?;
    let question = match group.members.len() {
        0 => format!("Delete the group {}?", group.name),
        1 => format!("Delete the group {} of 1 member?", group.name),
        count => format!("Delete the group {} of {count} members?", group.name),
    };
    if !args.yes && !context.out.confirm(&question, "--yes")? {
        context.out.note("nothing was deleted");
        return Ok(());
    }
    let answer = context.api.delete_group(group.id).await?;
    if context.out.json {
        context.out.json(&answer);
    } else {
        context.out.line(format!("group {} is deleted", group.name));
    }
    Ok(())
}

async fn members(context: &Context, args: &MemberArgs, into: bool) -> Result<(), CommandError> {
    let group = find(context, &args.group).await?;
    let mut answers = Vec::new();
    for name in &args.users {
        let user = users::find(context, name).await?;
        answers.push(match into {
            true => context.api.add_member(group.id, user.id).await?,
            false => context.api.remove_member(group.id, user.id).await?,
        });
        if !context.out.json {
            let state = if into { "is in" } else { "is no longer in" };
            context.out.line(format!("{} {state} group {}", user.username, group.name));
        }
    }
    if context.out.json {
        print_json(context, args.users.len(), answers);
    }
    Ok(())
}

async fn quota(context: &Context, args: &QuotaArgs) -> Result<(), CommandError> {
    let mut group = find(context, &args.group).await?;
    if args.limits.any() {
        let quota = Some(args.limits.apply(group.quota));
        let change = UpdateGroup { quota, ..UpdateGroup::default() };
        group = context.api.change_group(group.id, &change).await?;
    }
    let may = match group.quota == Quota::default() {
        true => "has no quota".to_owned(),
        false => format!("may hold {} together", words(&group.quota)),
    };
    say(context, &group, &may);
    Ok(())
}

async fn auto_approve(context: &Context, args: &AutoApproveArgs) -> Result<(), CommandError> {
    if args.off == args.limits.any() {
        return Err(CommandError::usage("give the limits, or --off, and not both")
            .hint("for example --instances 1 --cores 4 --memory 8G --gpus 0"));
    }
    let group = find(context, &args.group).await?;
    let change = UpdateGroup {
        auto_approve: (!args.off).then(|| args.limits.apply(Quota::default())),
        no_auto_approve: args.off,
        ..UpdateGroup::default()
    };
    let group = context.api.change_group(group.id, &change).await?;
    match &group.auto_approve {
        None => say(context, &group, "gets nothing without approval"),
        Some(rule) => {
            say(context, &group, &format!("gets {} each without approval", words(rule)));
        }
    }
    Ok(())
}
