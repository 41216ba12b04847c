//! Waits until an action on a VPS is done or has failed.

use kohakuriver_api::Task;

use super::act::Act;
use super::vocabulary::reported_failure;
use crate::context::Context;
use crate::error::CommandError;
use crate::wait::{self, End};

/// Waits for the action and returns its result.
pub async fn settle(
    context: &Context,
    act: Act<'_>,
    id: &str,
    name: &str,
) -> Result<Task, CommandError> {
    let step = format!("{} {name}", act.step());
    let over = |task: &Task| match task.status.as_str() {
        "lost" => true,
        _ if wait::is_blocked(task) => true,
        _ => task.transition.is_none() && task.status != "assigning",
    };
    let end = wait::unless_interrupted(wait::until(context, id, &step, over), || {
        CommandError::interrupted(format!("stopped waiting; VPS {name} is {}", act.doing()))
            .hint(format!("`kohakuriver vps status {id}` shows its progress"))
    });
    let task = match end.await? {
        End::Met(task) => *task,
        End::Gone => {
            return Err(CommandError::request(format!("VPS {name} was deleted in the meantime"))
                .hint("`kohakuriver vps list -a` shows all VPSes"));
        }
    };
    match task.status.as_str() {
        "lost" => Err(node_away(&task, name, act.later())),
        _ if wait::is_blocked(&task) => Err(reported_failure(&task)),
        status if act.is_done(status) => Ok(task),
        "failed" => Err(reported_failure(&task)),
        status => Err(CommandError::request(format!("VPS {name} is {status}, not {}", act.done()))
            .hint(format!("`kohakuriver vps status {id}` shows details"))),
    }
}

/// Builds the error for an action that the host has stored for a disconnected node.
pub fn node_away(task: &Task, name: &str, later: &str) -> CommandError {
    let node = task.assigned_node.as_deref().unwrap_or("its node");
    CommandError::request(format!(
        "the node {node} is not connected; VPS {name} will be {later} when it is back"
    ))
    .hint("`kohakuriver node list` shows which nodes are online")
}
