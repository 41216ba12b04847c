//! Answers the shell's Tab key: commands and options from the parser, VPSes and nodes from the
//! host. It says nothing rather than make anybody wait.

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

/// The name people type.
pub const PROGRAM: &str = "kohakuriver";
/// What the shell's script sets when it asks.
pub const VARIABLE: &str = "COMPLETE";
/// Longer feels like a hung shell.
const LIMIT: Duration = Duration::from_millis(200);

/// Answers and ends the process if the shell asked for completions; otherwise does nothing. Call
/// it first thing in `main`, before any thread or output. `root` builds the whole command line.
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

/// All accounts for who may list them; for others, whom they meet in the VPSes they know of.
pub fn users() -> Vec<CompletionCandidate> {
    let users = ask(async |context| match context.api.users().await {
        Ok(users) => Ok(users.into_iter().map(|user| (user.username, user.role)).collect()),
        Err(_) => Ok(met(&context.api.vps_all().await?, "user")),
    });
    users.into_iter().map(named).collect()
}

/// The same of groups.
pub fn groups() -> Vec<CompletionCandidate> {
    let groups = ask(async |context| match context.api.groups().await {
        Ok(groups) => Ok(groups.into_iter().map(|group| (group.name, String::new())).collect()),
        Err(_) => Ok(met(&context.api.vps_all().await?, "group")),
    });
    groups.into_iter().map(named).collect()
}

/// Who owns these VPSes, and whom they are shared with.
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

/// What waits for an operator.
pub fn requests() -> Vec<CompletionCandidate> {
    vps(&ask(async |context| context.api.pending().await))
}

/// The first node that answers speaks for all: images are in shared storage.
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

/// What is shared with the caller, whatever they answered.
pub fn shares() -> Vec<CompletionCandidate> {
    let shares = ask(async |context| Ok(context.api.received().await?.shares));
    let help = |share: &ReceivedShare| format!("to {}, {}", share.level, share.state);
    shares.iter().filter_map(|share| candidate(&share.reference, help(share))).collect()
}

/// What is offered to the caller.
pub fn offers() -> Vec<CompletionCandidate> {
    let offers = ask(async |context| Ok(context.api.received().await?.offers));
    let help = |offer: &ReceivedOffer| format!("offered by {}", offer.offered_by);
    offers.iter().filter_map(|offer| candidate(&offer.reference, help(offer))).collect()
}

/// Own ones under their names, others as `NAME.OWNER`: another's name never completes to one's
/// own.
fn vps(tasks: &[Task]) -> Vec<CompletionCandidate> {
    let one = |task: &Task| candidate(crate::vps::called(task), task.status.clone());
    tasks.iter().filter_map(one).collect()
}

/// Only what a command takes; a host says what it likes, and a shell reads what we print.
fn candidate(reference: &str, help: String) -> Option<CompletionCandidate> {
    let reference: VpsRef = reference.parse().ok()?;
    let help = one_line(&printable(&help));
    Some(CompletionCandidate::new(reference.as_str()).help(Some(help.into())))
}

/// Nothing on any trouble: an error message has no place in the middle of a command line.
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
    fn completion_offers_what_a_command_takes_and_nothing_else() {
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
    fn who_may_not_list_accounts_is_offered_whom_they_meet() {
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
