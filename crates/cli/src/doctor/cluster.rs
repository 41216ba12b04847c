//! Checks of nodes, admins and the audit log, as far as the account may read them.

use kohakuriver_api::{AuditVerified, Node, Task, User};

use super::finding::{Finding, State};
use super::host::clock;
use crate::context::Context;
use crate::error::CommandError;

pub async fn inspect(context: &Context) -> Vec<Finding> {
    let mut findings = match context.api.nodes().await {
        Ok(nodes) => judge_nodes(&nodes),
        // The log-in's finding says it.
        Err(_) => Vec::new(),
    };
    findings.extend(known(context.api.vps_all().await).and_then(|tasks| judge_tasks(&tasks)));
    // Without accounts nobody needs to be one.
    if known(context.api.auth_status().await).is_some_and(|status| status.auth_enabled) {
        findings.extend(known(context.api.users().await).map(|users| judge_admins(&users)));
    }
    findings.extend(known(context.api.verify_audit().await).map(|found| judge_log(&found)));
    findings
}

/// Drops responses that the account may not read or the host does not offer.
fn known<T>(answer: Result<T, CommandError>) -> Option<T> {
    answer.ok()
}

fn judge_nodes(nodes: &[Node]) -> Vec<Finding> {
    if nodes.is_empty() {
        return vec![Finding::warn(
            "nodes",
            "no node has joined",
            "`kohakuriver node token create` makes a token for a machine to join with",
        )];
    }
    let mut findings = Vec::new();
    let away: Vec<&str> = nodes
        .iter()
        .filter(|node| node.status != "online")
        .map(|node| node.hostname.as_str())
        .collect();
    findings.push(match away.len() {
        0 => Finding::ok("nodes", format!("all {} are online", nodes.len())),
        count => Finding {
            check: "nodes",
            state: if count == nodes.len() { State::Bad } else { State::Warn },
            found: format!("{count} of {} are offline: {}", nodes.len(), away.join(" ")),
            advice: Some(
                "see to `kohakuriver runner` there, and to the way to the host".to_owned(),
            ),
        },
    });
    for node in nodes.iter().filter(|node| node.status == "online") {
        let name = &node.hostname;
        if let Some(error) = &node.docker_error {
            findings.push(Finding::warn(
                "nodes",
                format!("{name} runs no containers: {error}"),
                "start the engine there: systemctl start docker",
            ));
        }
        if node.clock_skew_ms.abs() > 5000 {
            findings.push(Finding {
                found: format!(
                    "the clock of {name} is {} seconds from the host's",
                    node.clock_skew_ms.abs() / 1000
                ),
                ..clock("nodes", "its clock", node.clock_skew_ms / 1000)
            });
        }
        if let Some(version) =
            node.runner_version.as_deref().filter(|v| *v != env!("CARGO_PKG_VERSION"))
        {
            findings.push(Finding::warn(
                "nodes",
                format!("{name} has version {version}"),
                "copy this executable there, and start its runner again; VPSes go on running",
            ));
        }
    }
    findings
}

/// Finds VPSes whose node cannot execute the requested operation.
fn judge_tasks(tasks: &[Task]) -> Option<Finding> {
    const MOST_NAMED: usize = 5;
    let is_stuck = |task: &&Task| {
        let waits = task.transition.is_some() && task.error_code.is_some();
        waits || task.error_code.as_deref() == Some("too_large")
    };
    let stuck: Vec<&Task> = tasks.iter().filter(is_stuck).collect();
    let first = stuck.first()?;
    let names: Vec<&str> = stuck
        .iter()
        .take(MOST_NAMED)
        .map(|task| task.name.as_deref().unwrap_or(&task.task_id))
        .collect();
    let more = if stuck.len() > MOST_NAMED { " ..." } else { "" };
    let message = first.error_message.as_deref().unwrap_or("no reason is known");
    let found = format!(
        "{} make no progress: {}{more}; the first: {message}",
        stuck.len(),
        names.join(" ")
    );
    let advice = first.error_hint.clone();
    Some(Finding::warn(
        "vps",
        found,
        advice.unwrap_or_else(|| format!("kohakuriver vps status {}", first.task_id)),
    ))
}

fn judge_admins(users: &[User]) -> Finding {
    let is_admin = |user: &&User| user.role == "admin" && user.is_active;
    let admins: Vec<&str> =
        users.iter().filter(is_admin).map(|user| user.username.as_str()).collect();
    match admins.len() {
        0 => Finding::bad(
            "admins",
            "there is no active admin",
            "start the host again: it prints an invitation",
        ),
        _ => Finding::ok("admins", admins.join(" ")),
    }
}

fn judge_log(found: &AuditVerified) -> Finding {
    if found.intact {
        return Finding::ok("audit log", format!("{} entries, none changed", found.entries));
    }
    let which = found.broken_at.map_or_else(|| "an entry".to_owned(), |seq| format!("entry {seq}"));
    Finding::bad(
        "audit log",
        format!("{which} was changed"),
        "compare `kohakuriver audit export` with one you kept elsewhere",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(status: &str) -> Node {
        let version = Some(env!("CARGO_PKG_VERSION").to_owned());
        Node { status: status.to_owned(), runner_version: version, ..Node::default() }
    }

    #[test]
    fn nodes_are_judged_by_what_they_cannot_do() {
        let states =
            |nodes: &[Node]| judge_nodes(nodes).iter().map(|f| f.state).collect::<Vec<_>>();
        assert_eq!(states(&[]), [State::Warn]);
        assert_eq!(states(&[node("online")]), [State::Ok]);
        assert_eq!(states(&[node("online"), node("offline")]), [State::Warn]);
        assert_eq!(states(&[node("offline")]), [State::Bad]);
        let sick = Node {
            docker_error: Some("away".to_owned()),
            clock_skew_ms: -90_000,
            runner_version: Some("0.0.0".to_owned()),
            ..node("online")
        };
        assert_eq!(states(&[sick]), [State::Ok, State::Warn, State::Bad, State::Warn]);
    }

    #[test]
    fn oversized_and_stuck_vpses_are_named() {
        let task = |name: &str, transition: Option<&str>, code: Option<&str>| Task {
            name: Some(name.to_owned()),
            transition: transition.map(ToOwned::to_owned),
            error_code: code.map(ToOwned::to_owned),
            error_message: code.map(|code| format!("it is {code}")),
            error_hint: code.map(|_| "do this".to_owned()),
            ..Task::default()
        };
        let well = [task("a", Some("starting"), None), task("b", None, Some("ended"))];
        assert_eq!(judge_tasks(&well), None);
        let sick = [
            well[0].clone(),
            task("big", None, Some("too_large")),
            task("slow", Some("deleting"), Some("disk_full")),
        ];
        let found = judge_tasks(&sick).unwrap();
        assert_eq!((found.state, found.advice.as_deref()), (State::Warn, Some("do this")));
        assert!(found.found.contains("big slow") && found.found.contains("too_large"));
    }

    #[test]
    fn a_disabled_admin_is_none() {
        let user = |is_active| User {
            username: "ann".to_owned(),
            role: "admin".to_owned(),
            is_active,
            ..User::default()
        };
        assert_eq!(judge_admins(&[user(true)]).state, State::Ok);
        assert_eq!(judge_admins(&[user(false)]).state, State::Bad);
    }

    #[test]
    fn a_broken_chain_is_named_by_its_entry() {
        let found = AuditVerified {
            intact: false,
            entries: 3,
            pruned: 0,
            last_hash: None,
            broken_at: Some(2),
        };
        assert!(judge_log(&found).found.starts_with("entry 2 "));
        let whole = AuditVerified { intact: true, broken_at: None, ..found };
        assert_eq!(judge_log(&whole).state, State::Ok);
    }
}
