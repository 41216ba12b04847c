//! Completion for the shell's Tab key: commands and options from the parser, VPSes and nodes from
//! the host. It returns nothing rather than delay the shell.

use std::collections::BTreeSet;
use std::time::Duration;

use clap_complete::CompletionCandidate;
use clap_complete::env::CompleteEnv;
use kohakuriver_api::{ReceivedOffer, ReceivedShare, Task};

use crate::GlobalArgs;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;
use crate::ui::{Output, one_line, printable};

/// The name of the program as users type it.
pub const PROGRAM: &str = "kohakuriver";
/// The variable that the shell's script sets for a completion.
pub const VARIABLE: &str = "COMPLETE";
/// The time limit of a completion; a longer one feels like a hung shell.
const LIMIT: Duration = Duration::from_millis(200);

/// Completes and ends the process if the shell asked for completions; otherwise does nothing. Call
/// it first in `main`, before any thread or output. `root` builds the whole command line.
pub fn complete_if_asked(root: impl Fn() -> clap::Command) {
    if std::env::var_os(VARIABLE).is_none() {
        return;
    }
    CompleteEnv::with_factory(root).var(VARIABLE).bin(PROGRAM).completer(PROGRAM).complete();
}

pub fn vps_active() -> Vec<CompletionCandidate> {
    vps(&ask(async |context| context.api.vps_active().await))
}

pub fn vps_all() -> Vec<CompletionCandidate> {
    vps(&ask(async |context| context.api.vps_all().await))
}

pub fn nodes() -> Vec<CompletionCandidate> {
    let nodes = ask(async |context| context.api.nodes().await);
    nodes
        .into_iter()
        .map(|node| CompletionCandidate::new(node.hostname).help(Some(node.status.into())))
        .collect()
}

/// Lists all accounts where the caller has the permission, else the owners of its visible VPSes.
pub fn users() -> Vec<CompletionCandidate> {
    let users = ask(async |context| match context.api.users().await {
        Ok(users) => Ok(users.into_iter().map(|user| (user.username, user.role)).collect()),
        Err(_) => Ok(met(&context.api.vps_all().await?, "user")),
    });
    users.into_iter().map(named).collect()
}

/// Lists groups by the same rule.
pub fn groups() -> Vec<CompletionCandidate> {
    let groups = ask(async |context| match context.api.groups().await {
        Ok(groups) => Ok(groups.into_iter().map(|group| (group.name, String::new())).collect()),
        Err(_) => Ok(met(&context.api.vps_all().await?, "group")),
    });
    groups.into_iter().map(named).collect()
}

/// Collects the owners of these VPSes and the accounts or groups they are shared with.
fn met(tasks: &[Task], kind: &str) -> Vec<(String, String)> {
    let owners = tasks.iter().filter_map(|task| task.owner_username.as_ref());
    let owners = owners.filter(|_| kind == "user");
    let shares = tasks.iter().flat_map(|task| &task.shares);
    let shared = shares.filter(|share| share.kind == kind).map(|share| &share.name);
    let names: BTreeSet<&String> = owners.chain(shared).collect();
    names.into_iter().map(|name| (name.clone(), String::new())).collect()
}

fn named((name, help): (String, String)) -> CompletionCandidate {
    CompletionCandidate::new(name).help((!help.is_empty()).then(|| help.into()))
}

/// Lists requests that wait for an operator.
pub fn requests() -> Vec<CompletionCandidate> {
    vps(&ask(async |context| context.api.pending().await))
}

/// Lists the base images of the first node that answers: images are in shared storage.
pub fn vm_images() -> Vec<CompletionCandidate> {
    let images = ask(async |context| {
        let nodes = context.api.nodes().await?;
        let able = nodes.iter().find(|node| node.vm_capable && node.status == "online");
        match able {
            Some(node) => Ok(context.api.vm_images(&node.hostname).await?.images),
            None => Ok(Vec::new()),
        }
    });
    images.into_iter().map(|image| CompletionCandidate::new(image.name)).collect()
}

/// Lists shares that the caller has received, in any state.
pub fn shares() -> Vec<CompletionCandidate> {
    let shares = ask(async |context| Ok(context.api.received().await?.shares));
    let help = |share: &ReceivedShare| format!("to {}, {}", share.level, share.state);
    shares.iter().filter_map(|share| candidate(&share.reference, help(share))).collect()
}

/// Lists VPSes that are offered to the caller.
pub fn offers() -> Vec<CompletionCandidate> {
    let offers = ask(async |context| Ok(context.api.received().await?.offers));
    let help = |offer: &ReceivedOffer| format!("offered by {}", offer.offered_by);
    offers.iter().filter_map(|offer| candidate(&offer.reference, help(offer))).collect()
}

/// Lists the caller's VPSes by name and others as `NAME.OWNER`: another account's name never
/// completes to one of the caller's.
fn vps(tasks: &[Task]) -> Vec<CompletionCandidate> {
    let one = |task: &Task| candidate(crate::vps::called(task), task.status.clone());
    tasks.iter().filter_map(one).collect()
}

/// Returns a candidate if a command accepts it: the host is not trusted with the shell's input.
fn candidate(reference: &str, help: String) -> Option<CompletionCandidate> {
    let reference: VpsRef = reference.parse().ok()?;
    let help = one_line(&printable(&help));
    Some(CompletionCandidate::new(reference.as_str()).help(Some(help.into())))
}

/// Returns nothing on any error: an error message must not appear in the middle of a command line.
fn ask<T>(question: impl AsyncFnOnce(&Context) -> Result<Vec<T>, CommandError>) -> Vec<T> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let answer = runtime.block_on(async {
        let context = Context::new(&GlobalArgs::default(), Output::new(false)).ok()?;
        tokio::time::timeout(LIMIT, question(&context)).await.ok()?.ok()
    });
    runtime.shutdown_background();
    answer.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use kohakuriver_api::Share;

    use super::*;

    #[test]
    fn completion_offers_only_accepted_values() {
        let task = |reference: &str, taken| Task {
            reference: reference.to_owned(),
            taken,
            ..Task::default()
        };
        let tasks = [
            task("web", None),
            task("web.ann", Some(true)),
            task("$(reboot)", None),
            task("a\nb", None),
        ];
        let texts: Vec<_> = vps(&tasks).iter().map(|one| one.get_value().to_owned()).collect();
        assert_eq!(texts, ["web", "web.ann"]);
    }

    #[test]
    fn completion_without_account_list_offers_visible_accounts() {
        let share = |kind: &str, name: &str| Share {
            kind: kind.to_owned(),
            name: name.to_owned(),
            level: "use".to_owned(),
            ..Share::default()
        };
        let task = |owner: &str, shares| Task {
            owner_username: Some(owner.to_owned()),
            shares,
            ..Task::default()
        };
        let tasks = [
            task("ann", vec![share("user", "bob"), share("group", "lab")]),
            task("ann", vec![share("user", "bob"), share("user", "eve")]),
        ];
        let names = |kind| met(&tasks, kind).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names("user"), ["ann", "bob", "eve"]);
        assert_eq!(names("group"), ["lab"]);
    }
}
