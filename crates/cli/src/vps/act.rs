//! What the acts on VPSes have in common: ask for all, then wait for each.

use kohakuriver_api::{Message, Task, UpdateVps};

use super::settle::settle;
use super::{called, with_list_hint};
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;

/// One act on VPSes. Snapshots are named by tag.
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
struct Asked {
    name: String,
    message: Message,
}

impl Act<'_> {
    /// `VPS web is ...`, while it goes on.
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

    /// The step to show while waiting.
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

    /// `VPS web is ...`, when it is done.
    pub fn done(self) -> &'static str {
        match self {
            Self::Stop => "stopped",
            Self::Kill => "killed",
            Self::Pause => "paused",
            Self::Resume | Self::Restart | Self::RestartFrom(_) | Self::Restore(_) => "running",
            Self::Update(_) => "updated",
        }
    }

    /// `VPS web will be ...`, where its node is away.
    pub fn later(self) -> &'static str {
        match self {
            Self::Stop | Self::Kill | Self::Pause | Self::Update(_) => self.done(),
            Self::Resume => "resumed",
            Self::Restart | Self::RestartFrom(_) => "restarted",
            Self::Restore(_) => "restored",
        }
    }

    /// Whether a settled VPS is what was asked.
    pub fn is_done(self, status: &str) -> bool {
        match self {
            // However it came to its end, it does not run.
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

/// Acts on each VPS; what goes wrong with one does not keep the others from it.
pub async fn run(
    context: &Context,
    act: Act<'_>,
    refs: &[VpsRef],
    wait: bool,
) -> Result<(), CommandError> {
    let mut troubles = ErrorReporter::new(context);
    let mut asked: Vec<Asked> = Vec::new();
    for reference in refs {
        match ask(context, act, reference).await {
            Ok(new) if asked.iter().any(|old| old.message.task_id == new.message.task_id) => {}
            Ok(new) => asked.push(new),
            Err(failure) => troubles.add(failure)?,
        }
    }
    let mut results = Vec::new();
    for one in &asked {
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
                say_warning(context, act, &task, &mut troubles);
                results.push(serde_json::to_value(&task).unwrap_or_default());
            }
            Err(failure) => troubles.add(failure)?,
        }
    }
    if context.out.json {
        print_json(context, refs.len(), results);
    }
    troubles.end()
}

/// Limits that wait for the next start are not what a script that sets limits wants to hear 0 for.
fn say_warning(context: &Context, act: Act<'_>, task: &Task, troubles: &mut ErrorReporter<'_>) {
    let Some(warning) = &task.warning else {
        return;
    };
    context.out.note(format!("note: {warning}"));
    if matches!(act, Act::Update(_)) {
        context.out.hint(format!("`kohakuriver vps restart {}`", called(task)));
        troubles.any = true;
    }
}

/// What went wrong with some of several VPSes, told as it happens.
pub struct ErrorReporter<'a> {
    context: &'a Context,
    any: bool,
}

impl<'a> ErrorReporter<'a> {
    pub fn new(context: &'a Context) -> Self {
        Self { context, any: false }
    }

    /// Reports it; hands it back where going on makes no sense.
    pub fn add(&mut self, failure: CommandError) -> Result<(), CommandError> {
        if failure.ends_all() {
            return Err(failure);
        }
        self.any = true;
        self.context.out.failure(&failure);
        Ok(())
    }

    pub fn end(self) -> Result<(), CommandError> {
        if self.any { Err(CommandError::reported()) } else { Ok(()) }
    }
}

/// One thing asked for: its object. Several: an array.
pub fn print_json(context: &Context, asked: usize, mut results: Vec<serde_json::Value>) {
    match results.pop() {
        Some(only) if asked == 1 => context.out.json(&only),
        last => {
            results.extend(last);
            if asked > 1 {
                context.out.json(&results);
            }
        }
    }
}

async fn ask(context: &Context, act: Act<'_>, reference: &VpsRef) -> Result<Asked, CommandError> {
    let task = context.api.task(reference.as_str()).await.map_err(with_list_hint)?;
    let message = act.ask(context, &task.task_id).await?;
    Ok(Asked { name: called(&task).to_owned(), message })
}
