//! `kohakuriver vps shares` and `kohakuriver vps offers`: VPSes shared with or offered to the caller,
//! and the caller's responses.

use clap_complete::ArgValueCandidates;
use jiff::Timestamp;
use kohakuriver_api::{Received, ReceivedOffer, ReceivedShare};
use kohakuriver_model::{InstanceName, Memory};

use super::batch::{ErrorReporter, print_json};
use super::vocabulary::called;
use crate::complete;
use crate::context::Context;
use crate::error::{CommandError, Kind};
use crate::reference::VpsRef;
use crate::ui::{Fit, Grid, Tone, ago, until};

#[derive(clap::Args, Clone, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
A share gives access at once, by the VPS's id or as NAME.OWNER. Taking it adds the VPS to your lists,
`ssh config` and completion.

Examples:
  kohakuriver vps shares
  kohakuriver vps shares take web.ann
  kohakuriver vps shares take web.ann --as annas-web
  kohakuriver vps shares decline web.ann"
)]
pub struct SharesArgs {
    #[command(subcommand)]
    command: Option<SharesCommand>,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum SharesCommand {
    /// List VPSes shared with you, and your responses (the default)
    #[command(visible_alias = "ls")]
    List,
    /// Add a VPS shared with you to your lists.
    #[command(visible_alias = "accept")]
    Take(TakeArgs),
    /// Decline or leave shared VPSes; your access ends within seconds.
    #[command(visible_alias = "leave")]
    Decline(AnswerArgs),
}

#[derive(clap::Args, Clone, Debug)]
struct TakeArgs {
    /// Id or NAME.OWNER of the VPS.
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::shares))]
    vps: VpsRef,
    /// Your name for the VPS [default: NAME.OWNER].
    #[arg(long = "as", value_name = "NAME", value_parser = new_name)]
    alias: Option<String>,
}

#[derive(clap::Args, Clone, Debug)]
struct AnswerArgs {
    /// Ids, NAME.OWNER, or your names for the VPSes.
    #[arg(required = true, value_name = "VPS", add = ArgValueCandidates::new(complete::shares))]
    vpses: Vec<VpsRef>,
}

#[derive(clap::Args, Clone, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
An offered VPS belongs to its owner, and counts in the owner's quota, until you take it.

Examples:
  kohakuriver vps offers
  kohakuriver vps offers take web.ann
  kohakuriver vps offers decline web.ann"
)]
pub struct OffersArgs {
    #[command(subcommand)]
    command: Option<OffersCommand>,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum OffersCommand {
    /// List VPSes offered to you (the default)
    #[command(visible_alias = "ls")]
    List,
    /// Take ownership of offered VPSes; they count in your quota from then on.
    #[command(visible_alias = "accept")]
    Take(OfferArgs),
    /// Decline offered VPSes; their owner keeps them.
    Decline(OfferArgs),
}

#[derive(clap::Args, Clone, Debug)]
struct OfferArgs {
    /// Ids or NAME.OWNER of VPSes.
    #[arg(required = true, value_name = "VPS", add = ArgValueCandidates::new(complete::offers))]
    vpses: Vec<VpsRef>,
}

fn new_name(text: &str) -> Result<String, String> {
    InstanceName::for_new(text).map(String::from).map_err(|error| error.to_string())
}

pub async fn run(context: &Context, args: &SharesArgs) -> Result<(), CommandError> {
    match &args.command {
        None | Some(SharesCommand::List) => list(context).await,
        Some(SharesCommand::Take(args)) => {
            let alias = args.alias.as_deref();
            let taken = context.api.take_share(args.vps.as_str(), alias).await;
            let task = taken.map_err(with_hint)?;
            if context.out.json {
                context.out.json(&task);
            } else {
                context.out.line(format!("VPS {} is now in your lists", called(&task)));
            }
            Ok(())
        }
        Some(SharesCommand::Decline(args)) => {
            let mut troubles = ErrorReporter::new(context);
            let mut answers = Vec::new();
            for vps in &args.vpses {
                match context.api.decline_share(vps.as_str()).await.map_err(with_hint) {
                    Ok(answer) => {
                        if !context.out.json {
                            context.out.line(format!("VPS {vps} is declined"));
                        }
                        answers.push(answer);
                    }
                    Err(failure) => troubles.add(failure)?,
                }
            }
            if context.out.json {
                print_json(context, args.vpses.len(), answers);
            }
            troubles.end()
        }
    }
}

pub async fn offers(context: &Context, args: &OffersArgs) -> Result<(), CommandError> {
    let (args, take) = match &args.command {
        None | Some(OffersCommand::List) => return list_offers(context).await,
        Some(OffersCommand::Take(args)) => (args, true),
        Some(OffersCommand::Decline(args)) => (args, false),
    };
    let mut troubles = ErrorReporter::new(context);
    let mut answers = Vec::new();
    for vps in &args.vpses {
        match context.api.answer_offer(vps.as_str(), take).await.map_err(with_hint) {
            Ok(answer) => {
                if !context.out.json {
                    let outcome = if take { "is yours now" } else { "is declined" };
                    context.out.line(format!("VPS {vps} {outcome}"));
                }
                answers.push(answer);
            }
            Err(failure) => troubles.add(failure)?,
        }
    }
    if context.out.json {
        print_json(context, args.vpses.len(), answers);
    }
    troubles.end()
}

fn with_hint(failure: CommandError) -> CommandError {
    if failure.kind != Kind::NotFound {
        return failure;
    }
    failure.or_hint(|| "`kohakuriver vps shares` shows the VPSes shared with you".to_owned())
}

async fn list(context: &Context) -> Result<(), CommandError> {
    let Received { shares, .. } = context.api.received().await?;
    if context.out.json {
        context.out.json(&shares);
    } else if shares.is_empty() {
        context.out.note("no VPS is shared with you");
    } else {
        let mut grid = Grid::new(&[
            ("ID", Fit::Whole),
            ("NAME", Fit::Cut),
            ("LEVEL", Fit::Whole),
            ("BY GROUP", Fit::Cut),
            ("ANSWER", Fit::Whole),
            ("SHARED", Fit::Whole),
        ]);
        let now = Timestamp::now();
        shares.iter().for_each(|share| grid.row(share_row(share, now)));
        grid.print(context.out);
    }
    Ok(())
}

fn share_row(share: &ReceivedShare, now: Timestamp) -> Vec<(Tone, String)> {
    let (tone, answer) = match share.state.as_str() {
        "offered" => (Tone::Busy, "none yet"),
        "declined" => (Tone::Quiet, "declined"),
        other => (Tone::Good, other),
    };
    let plain = |text: &str| (Tone::Plain, text.to_owned());
    vec![
        plain(&share.task_id),
        plain(&share.reference),
        plain(&share.level),
        plain(&share.groups.join(" ")),
        (tone, answer.to_owned()),
        plain(&ago(&share.shared_at, now)),
    ]
}

async fn list_offers(context: &Context) -> Result<(), CommandError> {
    let Received { offers, .. } = context.api.received().await?;
    if context.out.json {
        context.out.json(&offers);
    } else if offers.is_empty() {
        context.out.note("no VPS is offered to you");
    } else {
        let mut grid = Grid::new(&[
            ("ID", Fit::Whole),
            ("NAME", Fit::Cut),
            ("OFFERED BY", Fit::Cut),
            ("BACKEND", Fit::Cut),
            ("CORES", Fit::Whole),
            ("MEMORY", Fit::Whole),
            ("GPUS", Fit::Whole),
            ("DISK", Fit::Whole),
            ("ENDS", Fit::Whole),
        ]);
        let now = Timestamp::now();
        offers.iter().for_each(|offer| grid.row(offer_row(offer, now)));
        grid.print(context.out);
    }
    Ok(())
}

fn offer_row(offer: &ReceivedOffer, now: Timestamp) -> Vec<(Tone, String)> {
    let bytes = |bytes: Option<u64>| match bytes {
        None | Some(0) => None,
        Some(bytes) => Some(Memory::from_bytes(bytes).to_string()),
    };
    let all = || "all".to_owned();
    let cores = if offer.required_cores == 0 { all() } else { offer.required_cores.to_string() };
    [
        offer.task_id.clone(),
        offer.reference.clone(),
        offer.offered_by.clone(),
        offer.vps_backend.clone(),
        cores,
        bytes(offer.required_memory_bytes).unwrap_or_else(all),
        offer.gpu_count.to_string(),
        bytes(offer.disk_bytes).unwrap_or_default(),
        until(&offer.expires_at, now),
    ]
    .map(|cell| (Tone::Plain, cell))
    .to_vec()
}

/// Prints a note about unanswered shares and offers. Ignores errors: an older host does not support
/// the query.
pub async fn remind(context: &Context) {
    let Ok(received) = context.api.received().await else { return };
    let shares = received.shares.iter().filter(|share| share.state == "offered").count();
    if let Some(text) = reminder(shares, received.offers.len()) {
        context.out.hint(text);
    }
}

fn reminder(shares: usize, offers: usize) -> Option<String> {
    let several = |count: usize, word| {
        (count > 0).then(|| format!("{count} {word}{}", if count == 1 { "" } else { "s" }))
    };
    let (shares, offers) = (several(shares, "share"), several(offers, "offer"));
    let commands = match (&shares, &offers) {
        (None, None) => return None,
        (Some(_), None) => "`kohakuriver vps shares`",
        (None, Some(_)) => "`kohakuriver vps offers`",
        (Some(_), Some(_)) => "`kohakuriver vps shares` and `kohakuriver vps offers`",
    };
    let what: Vec<String> = shares.into_iter().chain(offers).collect();
    Some(format!("not answered yet: {} ({commands})", what.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reminder_counts_unanswered_shares_and_offers() {
        assert_eq!(reminder(0, 0), None);
        let one = reminder(1, 0).unwrap();
        assert_eq!(one, "not answered yet: 1 share (`kohakuriver vps shares`)");
        assert!(reminder(2, 1).unwrap().contains("2 shares and 1 offer"));
    }

    #[test]
    fn rows_show_owner_and_response() {
        let now = Timestamp::UNIX_EPOCH;
        let share = ReceivedShare {
            reference: "web.ann".to_owned(),
            groups: vec!["lab".to_owned()],
            state: "offered".to_owned(),
            ..ReceivedShare::default()
        };
        let row = share_row(&share, now);
        assert_eq!((row[1].1.as_str(), row[3].1.as_str()), ("web.ann", "lab"));
        assert_eq!(row[4], (Tone::Busy, "none yet".to_owned()));
        let offer = ReceivedOffer { required_cores: 2, ..ReceivedOffer::default() };
        let row = offer_row(&offer, now);
        assert_eq!((row[4].1.as_str(), row[5].1.as_str()), ("2", "all"));
    }
}
