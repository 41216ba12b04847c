//! The shared flow of the lifecycle commands: send every request, then wait for each VPS.

use kohakuriver_api::{Message, Task, UpdateVps};

use super::batch::{ErrorReporter, print_json};
use super::settle::settle;
use super::vocabulary::{called, with_list_hint};
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;

/// A lifecycle action on VPSes. Snapshots are named by tag.
#[derive(Clone, Copy, Debug)]
pub enum Act<'a> {
    Stop,
    Kill,
    Pause,
    Resume,
    Restart,
    RestartFrom(&'a str),
    Restore(&'a str),
    Update(&'a UpdateVps),
}

/// A VPS whose request was accepted.
struct Accepted {
    name: String,
    message: Message,
}

impl Act<'_> {
    /// Completes `VPS web is ...` while the action is in progress.
    pub fn doing(self) -> &'static str {
        match self {
            Self::Stop => "stopping",
            Self::Kill => "being killed",
            Self::Pause => "pausing",
            Self::Resume => "resuming",
            Self::Restart | Self::RestartFrom(_) => "restarting",
            Self::Restore(_) => "being restored",
            Self::Update(_) => "being updated",
        }
    }

    /// Returns the step displayed while waiting.
    pub fn step(self) -> &'static str {
        match self {
            Self::Kill => "killing",
            Self::Restore(_) => "restoring",
            Self::Update(_) => "updating",
            Self::Stop | Self::Pause | Self::Resume | Self::Restart | Self::RestartFrom(_) => {
                self.doing()
            }
        }
    }

    /// Completes `VPS web is ...` once the action is done.
    pub fn done(self) -> &'static str {
        match self {
            Self::Stop => "stopped",
            Self::Kill => "killed",
            Self::Pause => "paused",
            Self::Resume | Self::Restart | Self::RestartFrom(_) | Self::Restore(_) => "running",
            Self::Update(_) => "updated",
        }
    }

    /// Completes `VPS web will be ...` while its node is disconnected.
    pub fn later(self) -> &'static str {
        match self {
            Self::Stop | Self::Kill | Self::Pause | Self::Update(_) => self.done(),
            Self::Resume => "resumed",
            Self::Restart | Self::RestartFrom(_) => "restarted",
            Self::Restore(_) => "restored",
        }
    }

    /// Returns whether a settled VPS has the status that the action asks for.
    pub fn is_done(self, status: &str) -> bool {
        match self {
            // Any final status will do: it no longer runs.
            Self::Stop | Self::Kill => {
                matches!(status, "stopped" | "killed" | "killed_oom" | "failed")
            }
            Self::Pause => status == "paused",
            Self::Resume | Self::Restart | Self::RestartFrom(_) | Self::Restore(_) => {
                status == "running"
            }
            Self::Update(_) => true,
        }
    }

    async fn ask(self, context: &Context, id: &str) -> Result<Message, CommandError> {
        let api = &context.api;
        match self {
            Self::Stop => api.stop_vps(id).await,
            Self::Kill => api.kill_vps(id).await,
            Self::Pause => api.pause_vps(id).await,
            Self::Resume => api.resume_vps(id).await,
            Self::Restart => api.restart_vps(id, None).await,
            Self::RestartFrom(tag) => api.restart_vps(id, Some(tag)).await,
            Self::Restore(tag) => api.restore_snapshot(id, tag).await,
            Self::Update(change) => api.update_vps(id, change).await,
        }
    }
}

/// Applies the action to each VPS; a failure of one does not stop the others.
pub async fn run(
    context: &Context,
    act: Act<'_>,
    refs: &[VpsRef],
    wait: bool,
) -> Result<(), CommandError> {
    let mut errors = ErrorReporter::new(context);
    let mut accepted: Vec<Accepted> = Vec::new();
    for reference in refs {
        match ask(context, act, reference).await {
            Ok(new) if accepted.iter().any(|old| old.message.task_id == new.message.task_id) => {}
            Ok(new) => accepted.push(new),
            Err(failure) => errors.add(failure)?,
        }
    }
    let mut results = Vec::new();
    for one in &accepted {
        if !wait {
            if !context.out.json {
                context.out.line(format!("VPS {} is {}", one.name, act.doing()));
            }
            results.push(serde_json::to_value(&one.message).unwrap_or_default());
            continue;
        }
        match settle(context, act, &one.message.task_id, &one.name).await {
            Ok(task) => {
                if !context.out.json {
                    context.out.line(format!("VPS {} is {}", called(&task), act.done()));
                }
                print_warning(context, act, &task, &mut errors);
                results.push(serde_json::to_value(&task).unwrap_or_default());
            }
            Err(failure) => errors.add(failure)?,
        }
    }
    if context.out.json {
        print_json(context, refs.len(), results);
    }
    errors.end()
}

/// Prints the VPS's warning. For an update the exit code becomes 1, because a script that sets limits
/// must not take limits that wait for the next start as applied.
fn print_warning(context: &Context, act: Act<'_>, task: &Task, errors: &mut ErrorReporter<'_>) {
    let Some(warning) = &task.warning else {
        return;
    };
    context.out.note(format!("note: {warning}"));
    if matches!(act, Act::Update(_)) {
        context.out.hint(format!("`kohakuriver vps restart {}`", called(task)));
        errors.mark();
    }
}

async fn ask(
    context: &Context,
    act: Act<'_>,
    reference: &VpsRef,
) -> Result<Accepted, CommandError> {
    let task = context.api.task(reference.as_str()).await.map_err(with_list_hint)?;
    let message = act.ask(context, &task.task_id).await?;
    Ok(Accepted { name: called(&task).to_owned(), message })
}
