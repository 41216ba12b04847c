//! `kohakuriver vps status`

use clap_complete::ArgValueCandidates;
use jiff::Timestamp;
use kohakuriver_api::{Share, Task};

use super::vocabulary::{called, cores, has_ssh, is_machine, memory, with_list_hint};
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;
use crate::ui::{Panel, Progress, Tone, age, ago, status_tone};
use crate::wait::{self, News};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver vps status web
  kohakuriver vps status 7398 --json     by the first digits of its id
  kohakuriver vps status web --watch")]
pub struct StatusArgs {
    /// Id or name of the VPS.
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: VpsRef,
    /// Print the VPS again after each change, until it is deleted or Ctrl-C.
    #[arg(short, long)]
    watch: bool,
}

pub async fn run(context: &Context, args: &StatusArgs) -> Result<(), CommandError> {
    let task = context.api.task(args.vps.as_str()).await.map_err(with_list_hint)?;
    show(context, &task);
    if !args.watch {
        return Ok(());
    }
    wait::watching(watch(context, task)).await
}

async fn watch(context: &Context, mut shown: Task) -> Result<(), CommandError> {
    let mut news = News::of(&shown.task_id, Some(shown.revision));
    loop {
        let mut quiet = Progress::quiet(context.out);
        let Some(next) = news.next(context, &mut quiet).await? else {
            context.out.note(format!("VPS {} is gone", called(&shown)));
            return Ok(());
        };
        if looks_the_same(context, &shown, &next) {
            continue;
        }
        if !context.out.json {
            context.out.line("");
        }
        show(context, &next);
        shown = next;
    }
}

/// Returns whether the output would be the same, apart from ages and the revision.
fn looks_the_same(context: &Context, old: &Task, new: &Task) -> bool {
    if context.out.json {
        return *new == Task { revision: new.revision, ..old.clone() };
    }
    let now = Timestamp::now();
    panel(old, now).render(context.out) == panel(new, now).render(context.out)
}

/// Prints a VPS in detail.
pub fn show(context: &Context, task: &Task) {
    if context.out.json {
        context.out.json(task);
    } else {
        panel(task, Timestamp::now()).print(context.out);
    }
}

fn panel(task: &Task, now: Timestamp) -> Panel {
    let mut panel = Panel::default();
    panel.add("id", &task.task_id).maybe("name", task.name.as_deref());
    panel.tinted("status", status_tone(&task.status), &task.status);
    approval(&mut panel, task);
    if let Some(transition) = &task.transition {
        let since = task.transition_since.as_deref().and_then(|time| age(time, now));
        let text = match since {
            Some(age) => format!("{transition}: requested {age} ago"),
            None => transition.clone(),
        };
        panel.tinted("in progress", Tone::Busy, text);
    }
    if let Some(step) = &task.progress {
        let percent = task.progress_percent.map(|p| format!(" ({p} %)")).unwrap_or_default();
        panel.add("progress", format!("{step}{percent}"));
    }
    if let Some(error) = &task.error_message {
        panel.tinted("error", Tone::Bad, error);
    }
    panel.maybe("hint", task.error_hint.as_deref());
    if let Some(warning) = &task.warning {
        panel.tinted("warning", Tone::Busy, warning);
    }
    panel.maybe("exit code", task.exit_code.map(|code| code.to_string()));
    panel.maybe("node", task.assigned_node.as_deref());
    panel.maybe("requested node", task.requested_node.as_deref());
    panel.add("backend", &task.vps_backend);
    let images = [&task.vm_image, &task.docker_image_name, &task.container_name];
    panel.maybe("image", images.into_iter().flatten().next());
    panel.maybe("from snapshot", task.from_snapshot.as_deref());
    panel.add("cores", cores(task)).add("memory", memory(task));
    panel.maybe("disk", task.vm_disk_size.as_deref());
    panel.maybe("address", task.vm_ip.as_deref());
    match task.gpu_count {
        Some(count) => panel.add("gpus", format!("any {count}")),
        None if task.required_gpus.is_empty() => &mut panel,
        None => panel.add("gpus", gpus(task)),
    };
    panel.maybe("numa node", task.target_numa_node_id.map(|node| node.to_string()));
    panel.maybe("process limit", task.pids_limit.map(|limit| limit.to_string()));
    if task.docker_privileged {
        panel.tinted("privileged", Tone::Busy, "yes: its root user is root of the node");
    }
    if !task.docker_mount_dirs.is_empty() {
        panel.add("mounts", task.docker_mount_dirs.join("\n"));
    }
    panel.add("snapshots", snapshots(task));
    if task.on_oom == "keep" {
        panel.add("out of memory", "ends the killed process only");
    }
    if !task.env_vars.is_empty() {
        // Values are often secrets, so only --json prints them.
        let names: Vec<&str> = task.env_vars.keys().map(String::as_str).collect();
        panel.add("environment", names.join(" "));
    }
    let ssh = match (has_ssh(task), task.status.as_str()) {
        (false, _) => "no".to_owned(),
        (true, "running") => format!("kohakuriver ssh {}", called(task)),
        (true, _) => "yes".to_owned(),
    };
    if is_machine(task) && matches!(task.status.as_str(), "running" | "assigning") {
        panel.add("console", format!("kohakuriver terminal attach {}", called(task)));
    }
    panel.add("ssh", ssh).maybe("owner", task.owner_username.as_deref());
    if !task.shares.is_empty() {
        panel.add("shared with", shares(task));
    }
    // Owners and operators have full access.
    let access = task.access.as_deref().filter(|word| ["view", "use", "manage"].contains(word));
    let taken = if task.taken == Some(false) { ", not taken yet" } else { "" };
    panel.maybe("shared with you", access.map(|level| format!("to {level}{taken}")));
    panel.maybe("offered to", task.offered_to.as_deref());
    let times = [
        ("submitted", &task.submitted_at),
        ("started", &task.started_at),
        ("ended", &task.completed_at),
    ];
    for (key, time) in times {
        panel.maybe(key, time.as_deref().map(|text| format!("{text} ({})", ago(text, now))));
    }
    panel
}

/// Adds the state of the approval.
fn approval(panel: &mut Panel, task: &Task) {
    let by = task.approved_by_username.as_deref();
    match (task.status.as_str(), by) {
        ("pending_approval", _) => {
            panel.tinted("approval", Tone::Busy, "waiting for an operator");
            panel.maybe("revision", task.approval_revision.as_deref());
        }
        ("rejected", _) => {
            let who = by.map(|name| format!(" by {name}")).unwrap_or_default();
            let reason = task.rejection_reason.as_deref().unwrap_or("no reason given");
            panel.tinted("rejected", Tone::Bad, format!("{reason}{who}"));
        }
        (_, Some(name)) => {
            panel.add("approved by", name);
        }
        (_, None) => {}
    }
}

/// Formats the shares, each on its own line.
fn shares(task: &Task) -> String {
    let line = |share: &Share| {
        let group = if share.kind == "group" { "group " } else { "" };
        let state = match share.state.as_str() {
            "offered" => ", not taken yet",
            "declined" => ", declined",
            _ => "",
        };
        format!("{group}{} (to {}){state}", share.name, share.level)
    };
    task.shares.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Formats the GPUs, each on its own line because a UUID is long.
fn gpus(task: &Task) -> String {
    let line = |(place, index): (usize, &u32)| match task.gpu_uuids.get(place) {
        Some(uuid) => format!("{index}  {uuid}"),
        None => index.to_string(),
    };
    task.required_gpus.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
}

fn snapshots(task: &Task) -> String {
    let kept = match task.keep_snapshots {
        0 => "all are kept".to_owned(),
        1 => "the newest one is kept".to_owned(),
        count => format!("the newest {count} are kept"),
    };
    if task.snapshot_on_stop { format!("one at each stop, {kept}") } else { kept }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::Output;

    #[test]
    fn panel_shows_optional_fields_of_a_vps() {
        let task = Task {
            task_id: "7".to_owned(),
            required_gpus: vec![1, 3],
            gpu_uuids: vec!["GPU-a".to_owned(), "GPU-b".to_owned()],
            warning: Some("the new limits wait for the next start".to_owned()),
            from_snapshot: Some("6:1750000000".to_owned()),
            snapshot_on_stop: true,
            keep_snapshots: 3,
            on_oom: "keep".to_owned(),
            docker_privileged: true,
            docker_mount_dirs: vec!["/data:/mnt:ro".to_owned()],
            ..Task::default()
        };
        let out = Output { json: false, colour: false };
        let now = Timestamp::UNIX_EPOCH;
        let text = panel(&task, now).render(out).join("\n");
        for part in [
            "1  GPU-a\n",
            "3  GPU-b\n",
            "new limits wait",
            "6:1750000000",
            "one at each stop, the newest 3 are kept",
            "ends the killed process only",
            "root of the node",
            "/data:/mnt:ro",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let machine = Task {
            status: "running".to_owned(),
            vps_backend: "qemu".to_owned(),
            vm_image: Some("noble".to_owned()),
            vm_disk_size: Some("20G".to_owned()),
            vm_ip: Some("10.77.0.2".to_owned()),
            on_oom: String::new(),
            ..task.clone()
        };
        let text = panel(&machine, now).render(out).join("\n");
        for part in ["qemu", "noble", "20G", "10.77.0.2", "kohakuriver terminal attach 7"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("process limit"), "{text}");
        let waiting = Task {
            status: "pending_approval".to_owned(),
            gpu_count: Some(2),
            requested_node: Some("gpu-01".to_owned()),
            owner_username: Some("ann".to_owned()),
            shares: vec![
                Share {
                    kind: "user".to_owned(),
                    name: "bob".to_owned(),
                    level: "use".to_owned(),
                    state: "offered".to_owned(),
                },
                Share {
                    kind: "group".to_owned(),
                    name: "lab".to_owned(),
                    level: "view".to_owned(),
                    ..Share::default()
                },
            ],
            ..task.clone()
        };
        let text = panel(&waiting, now).render(out).join("\n");
        for part in [
            "waiting for an operator",
            "any 2",
            "gpu-01",
            "ann",
            "bob (to use), not taken yet",
            "group lab (to view)",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let refused = Task {
            status: "rejected".to_owned(),
            rejection_reason: Some("too large".to_owned()),
            approved_by_username: Some("olga".to_owned()),
            ..waiting
        };
        let text = panel(&refused, now).render(out).join("\n");
        assert!(text.contains("too large by olga"), "{text}");
        let plain = Task { on_oom: "end".to_owned(), warning: None, ..task };
        let text = panel(&plain, now).render(out).join("\n");
        assert!(!text.contains("out of memory") && !text.contains("warning"), "{text}");
    }
}
