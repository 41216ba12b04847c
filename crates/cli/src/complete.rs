//! Answers the shell's Tab key: commands and options from the parser, VPSes and nodes from the
//! host. It says nothing rather than make anybody wait.

use std::time::Duration;

use clap_complete::CompletionCandidate;
use clap_complete::env::CompleteEnv;
use kohakuriver_api::Task;

use crate::GlobalArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::ui::Output;

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
    ask(async |context| context.api.vps_active().await).iter().map(vps).collect()
}

pub fn vps_all() -> Vec<CompletionCandidate> {
    ask(async |context| context.api.vps_all().await).iter().map(vps).collect()
}

pub fn nodes() -> Vec<CompletionCandidate> {
    let nodes = ask(async |context| context.api.nodes().await);
    nodes
        .into_iter()
        .map(|node| CompletionCandidate::new(node.hostname).help(Some(node.status.into())))
        .collect()
}

/// Only an admin learns them.
pub fn users() -> Vec<CompletionCandidate> {
    let users = ask(async |context| context.api.users().await);
    users
        .into_iter()
        .map(|user| CompletionCandidate::new(user.username).help(Some(user.role.into())))
        .collect()
}

pub fn groups() -> Vec<CompletionCandidate> {
    let groups = ask(async |context| context.api.groups().await);
    groups.into_iter().map(|group| CompletionCandidate::new(group.name)).collect()
}

/// What waits for an operator.
pub fn requests() -> Vec<CompletionCandidate> {
    ask(async |context| context.api.pending().await).iter().map(vps).collect()
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

fn vps(task: &Task) -> CompletionCandidate {
    CompletionCandidate::new(crate::vps::called(task)).help(Some(task.status.clone().into()))
}

/// Nothing on any trouble: an error message has no place in the middle of a command line.
fn ask<T>(question: impl AsyncFnOnce(&Context) -> Result<Vec<T>, Failure>) -> Vec<T> {
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
