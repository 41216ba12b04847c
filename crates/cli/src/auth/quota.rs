//! `kohakuriver auth quota`

use clap_complete::ArgValueCandidates;
use kohakuriver_api::{Held, Quota, QuotaUse, UpdateUser};

use super::limits::{LimitArgs, rows};
use super::users::find;
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::ui::{Fit, Grid, Tone};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
What somebody's groups allow all their members together counts besides:
`kohakuriver auth group quota GROUP`.

Examples:
  kohakuriver auth quota                               yours
  kohakuriver auth quota ann
  kohakuriver auth quota ann --cores 16 --memory 64G --gpu-hours 200
  kohakuriver auth quota ann --gpus none               no limit any more")]
pub struct QuotaArgs {
    /// User name; flags change its quota [default: yours].
    #[arg(value_name = "NAME", add = ArgValueCandidates::new(complete::users))]
    name: Option<String>,
    #[command(flatten)]
    limits: LimitArgs,
}

pub async fn run(context: &Context, args: &QuotaArgs) -> Result<(), CommandError> {
    let report = match &args.name {
        None if args.limits.any() => {
            return Err(CommandError::usage("the account of the quota is missing")
                .hint("kohakuriver auth quota NAME, with the same flags"));
        }
        None => context.api.quota().await?,
        Some(name) => {
            let user = find(context, name).await?;
            if args.limits.any() {
                let old = context.api.quota_of(user.id).await?.quota;
                let quota = Some(args.limits.apply(old));
                let change = UpdateUser { quota, ..UpdateUser::default() };
                context.api.change_user(user.id, &change).await?;
            }
            context.api.quota_of(user.id).await?
        }
    };
    if context.out.json {
        context.out.json(&report);
    } else {
        grid(&report).print(context.out);
    }
    Ok(())
}

/// Lists one row per limit, the account's and then its groups'.
pub fn grid(report: &QuotaUse) -> Grid {
    let mut grid = Grid::new(&[
        ("WHAT", Fit::Whole),
        ("HELD", Fit::Whole),
        ("LIMIT", Fit::Whole),
        ("WHOSE", Fit::Cut),
    ]);
    add(&mut grid, "", &report.quota, &report.held);
    for group in &report.groups {
        add(&mut grid, &format!("group {}", group.name), &group.quota, &group.held);
    }
    grid
}

/// Skips the resources that a group does not limit.
fn add(grid: &mut Grid, whose: &str, quota: &Quota, held: &Held) {
    for (what, held, limit) in rows(quota, held) {
        if !whose.is_empty() && limit.is_none() {
            continue;
        }
        let tone = if limit.as_ref() == Some(&held) { Tone::Busy } else { Tone::Plain };
        let limit = limit.unwrap_or_else(|| "none".to_owned());
        let whose = if whose.is_empty() { "own" } else { whose };
        grid.row(vec![
            (Tone::Plain, what.to_owned()),
            (tone, held),
            (Tone::Plain, limit),
            (Tone::Plain, whose.to_owned()),
        ]);
    }
}
