//! `kohakuriver vps status`

use clap_complete::ArgValueCandidates;
use jiff::Timestamp;
use kohakuriver_api::Task;

use super::act::with_list_hint;
use super::called;
use super::list::{cores, has_ssh, memory};
use crate::complete;
use crate::context::Context;
use crate::failure::{Failure, Kind};
use crate::reference::VpsRef;
use crate::ui::{Panel, Tone, age, ago, status_tone};
use crate::wait;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver vps status web
  kohakuriver vps status 7398 --json     the first digits of an id are enough
  kohakuriver vps status web --watch")]
pub struct StatusArgs {
    /// Id or name
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: VpsRef,
    /// Print it again after every change, until it is gone or Ctrl-C
    #[arg(short, long)]
    watch: bool,
}

pub async fn run(context: &Context, args: &StatusArgs) -> Result<(), Failure> {
    let task = context.api.task(args.vps.as_str()).await.map_err(with_list_hint)?;
    print(context, &task);
    if !args.watch {
        return Ok(());
    }
    // Ctrl-C is how watching ends, so it is no failure.
    let ended = wait::unless_interrupted(watch(context, task), || Failure::interrupted("")).await;
    match ended {
        Err(failure) if failure.kind == Kind::Interrupted => Ok(()),
        other => other,
    }
}

async fn watch(context: &Context, mut task: Task) -> Result<(), Failure> {
    loop {
        let id = task.task_id.clone();
        match context.api.task_after(&id, task.revision).await {
            Ok(next) if next.revision == task.revision => {
                // Bounds how often a host that does not wait is asked.
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
            Ok(next) => {
                if !context.out.json {
                    context.out.line("");
                }
                print(context, &next);
                task = next;
            }
            Err(failure) if failure.kind == Kind::NotFound => {
                context.out.note(format!("VPS {} is gone", called(&task)));
                return Ok(());
            }
            Err(failure) => return Err(failure),
        }
    }
}

fn print(context: &Context, task: &Task) {
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
    if let Some(transition) = &task.transition {
        let since = task.transition_since.as_deref().and_then(|time| age(time, now));
        let text = match since {
            Some(age) => format!("{transition}: asked {age} ago"),
            None => transition.clone(),
        };
        panel.tinted("under way", Tone::Busy, text);
    }
    if let Some(step) = &task.progress {
        let percent = task.progress_percent.map(|p| format!(" ({p} %)")).unwrap_or_default();
        panel.add("progress", format!("{step}{percent}"));
    }
    if let Some(error) = &task.error_message {
        panel.tinted("error", Tone::Bad, error);
    }
    panel.maybe("hint", task.error_hint.as_deref());
    panel.maybe("exit code", task.exit_code.map(|code| code.to_string()));
    panel.maybe("node", task.assigned_node.as_deref());
    panel.add("backend", &task.vps_backend);
    let image = task.docker_image_name.as_deref().or(task.container_name.as_deref());
    panel.maybe("image", image);
    panel.add("cores", cores(task)).add("memory", memory(task));
    if !task.required_gpus.is_empty() {
        let gpus: Vec<String> = task.required_gpus.iter().map(u32::to_string).collect();
        panel.add("gpus", gpus.join(","));
    }
    panel.maybe("numa node", task.target_numa_node_id.map(|node| node.to_string()));
    panel.maybe("process limit", task.pids_limit.map(|limit| limit.to_string()));
    if !task.env_vars.is_empty() {
        // Values are often secrets; they are in --json for who wants them.
        let names: Vec<&str> = task.env_vars.keys().map(String::as_str).collect();
        panel.add("environment", names.join(" "));
    }
    let ssh = match (has_ssh(task), task.status.as_str()) {
        (false, _) => "no".to_owned(),
        (true, "running") => format!("kohakuriver ssh {}", called(task)),
        (true, _) => "yes".to_owned(),
    };
    panel.add("ssh", ssh).maybe("owner", task.owner_username.as_deref());
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
