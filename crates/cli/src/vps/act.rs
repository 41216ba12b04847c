//! What stop and restart have in common: ask for all, then wait for each.

use kohakuriver_api::{Message, Task};

use crate::context::Context;
use crate::failure::{Failure, Kind};
use crate::reference::VpsRef;
use crate::vps::called;
use crate::wait::{self, End};

/// One act on VPSes.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    Stop,
    Restart,
}

/// A VPS whose request was accepted.
struct Asked {
    name: String,
    message: Message,
}

impl Act {
    fn doing(self) -> &'static str {
        match self {
            Self::Stop => "stopping",
            Self::Restart => "restarting",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Stop => "stopped",
            Self::Restart => "running",
        }
    }

    async fn ask(self, context: &Context, id: &str) -> Result<Message, Failure> {
        match self {
            Self::Stop => context.api.stop_vps(id).await,
            Self::Restart => context.api.restart_vps(id).await,
        }
    }
}

/// Acts on each VPS; what goes wrong with one does not keep the others from it.
pub async fn run(context: &Context, act: Act, refs: &[VpsRef], wait: bool) -> Result<(), Failure> {
    let mut troubles = Troubles::new(context);
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
        match settle(context, act, one).await {
            Ok(task) => {
                if !context.out.json {
                    context.out.line(format!("VPS {} is {}", called(&task), act.done()));
                }
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

/// What went wrong with some of several VPSes, told as it happens.
pub struct Troubles<'a> {
    context: &'a Context,
    any: bool,
}

impl<'a> Troubles<'a> {
    pub fn new(context: &'a Context) -> Self {
        Self { context, any: false }
    }

    /// Reports it; hands it back where going on makes no sense.
    pub fn add(&mut self, failure: Failure) -> Result<(), Failure> {
        if failure.ends_all() {
            return Err(failure);
        }
        self.any = true;
        self.context.out.failure(&failure);
        Ok(())
    }

    pub fn end(self) -> Result<(), Failure> {
        if self.any { Err(Failure::reported()) } else { Ok(()) }
    }
}

/// One VPS asked for: its object. Several: an array.
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

async fn ask(context: &Context, act: Act, reference: &VpsRef) -> Result<Asked, Failure> {
    let task = context.api.task(reference.as_str()).await.map_err(with_list_hint)?;
    let message = act.ask(context, &task.task_id).await?;
    Ok(Asked { name: called(&task).to_owned(), message })
}

/// Every "there is no such VPS" ends with where to look.
pub fn with_list_hint(failure: Failure) -> Failure {
    if failure.kind != Kind::NotFound {
        return failure;
    }
    failure.or_hint(|| "`kohakuriver vps list -a` shows all VPSes".to_owned())
}

async fn settle(context: &Context, act: Act, asked: &Asked) -> Result<Task, Failure> {
    let id = asked.message.task_id.as_str();
    let step = format!("{} {}", act.doing(), asked.name);
    let over = |task: &Task| match task.status.as_str() {
        "lost" => true,
        _ if wait::is_blocked(task) => true,
        _ => task.transition.is_none() && task.status != "assigning",
    };
    let end = wait::unless_interrupted(wait::until(context, id, &step, over), || {
        Failure::interrupted(format!(
            "not waiting any longer; VPS {} is {}",
            asked.name,
            act.doing()
        ))
        .hint(format!("`kohakuriver vps status {id}` shows how far it is"))
    });
    let task = match end.await? {
        End::Met(task) => *task,
        End::Gone => {
            return Err(Failure::request(format!("VPS {} was deleted meanwhile", asked.name)));
        }
    };
    match (task.status.as_str(), act) {
        (status, _) if status == act.done() => Ok(task),
        ("failed" | "killed" | "killed_oom", Act::Stop) => Ok(task),
        ("lost", _) => {
            let node = task.assigned_node.as_deref().unwrap_or("its node");
            Err(Failure::request(format!(
                "the node {node} is not connected; VPS {} will be {} when it is back",
                asked.name,
                match act {
                    Act::Stop => "stopped",
                    Act::Restart => "restarted",
                }
            ))
            .hint("`kohakuriver node list` shows which nodes are online"))
        }
        _ if wait::is_blocked(&task) => Err(super::reported_failure(&task)),
        ("failed", Act::Restart) => Err(super::reported_failure(&task)),
        (status, _) => {
            Err(Failure::request(format!("VPS {} is {status}, not {}", asked.name, act.done()))
                .hint(format!("`kohakuriver vps status {id}` shows more")))
        }
    }
}
