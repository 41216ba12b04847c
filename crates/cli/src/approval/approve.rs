//! `kohakuriver approval approve`

use clap_complete::ArgValueCandidates;
use kohakuriver_api::Task;

use super::{list, with_list_hint};
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;
use crate::ui::one_line;
use crate::vps::{ErrorReporter, called, cores, memory, print_json};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
A name can mean another request than the one you have read: its owner can withdraw it and ask anew.
So a request that you name by its name is shown again and asked about. A whole id is not, and neither
is the revision that `kohakuriver approval show` prints; the host refuses both if it changed since.

Examples:
  kohakuriver approval approve web.ann
  kohakuriver approval approve web.ann --revision 3f0c2a9b7d1e8c45
  kohakuriver approval approve $(kohakuriver approval list --json | jq -r '.[].task_id')")]
pub struct ApproveArgs {
    /// Ids or names of requests.
    #[arg(required = true, value_name = "REQUEST", add = ArgValueCandidates::new(complete::requests))]
    requests: Vec<VpsRef>,
    /// Approve only the revision that `kohakuriver approval show` printed; for a single request.
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// Do not ask for confirmation.
    #[arg(short, long)]
    yes: bool,
}

pub async fn run(context: &Context, args: &ApproveArgs) -> Result<(), CommandError> {
    if args.revision.is_some() && args.requests.len() > 1 {
        return Err(CommandError::usage("--revision is of one request, and several are named")
            .hint("approve each by itself"));
    }
    let mut troubles = ErrorReporter::new(context);
    let mut answers = Vec::new();
    for request in &args.requests {
        match approve(context, args, request).await {
            Ok(Some((answer, name))) => {
                if !context.out.json {
                    context.out.line(format!("VPS {name} is approved, and being created"));
                }
                answers.push(answer);
            }
            Ok(None) => context.out.note(format!("{request} is not approved")),
            Err(failure) => troubles.add(failure)?,
        }
    }
    if context.out.json {
        print_json(context, args.requests.len(), answers);
    }
    troubles.end()
}

/// Returns nothing where the operator declines.
async fn approve(
    context: &Context,
    args: &ApproveArgs,
    request: &VpsRef,
) -> Result<Option<(serde_json::Value, String)>, CommandError> {
    let task = context.api.task(request.as_str()).await.map_err(with_list_hint)?;
    let by_id = request.as_str() == task.task_id;
    if !by_id && !args.yes && args.revision.is_none() {
        let question = format!("Approve {}?", summary(&task));
        if !context.out.confirm(&question, "--yes, or name it by its id")? {
            return Ok(None);
        }
    }
    let revision = args.revision.as_deref().or(task.approval_revision.as_deref());
    let answer = context.api.approve(&task.task_id, revision).await?;
    Ok(Some((answer, called(&task).to_owned())))
}

/// Describes the resources of the request in one line.
fn summary(task: &Task) -> String {
    let images = [&task.vm_image, &task.docker_image_name];
    let image = images.into_iter().flatten().next().map(|image| format!(", of {image}"));
    let text = format!(
        "VPS {} (request {}): {} cores, {} memory, {} GPUs{}{}",
        called(task),
        task.task_id,
        cores(task),
        memory(task),
        list::gpus(task),
        task.vm_disk_size.as_ref().map(|size| format!(", {size} disk")).unwrap_or_default(),
        image.unwrap_or_default(),
    );
    one_line(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_names_the_request_and_all_it_takes() {
        let task = Task {
            task_id: "7".to_owned(),
            reference: "web.ann".to_owned(),
            required_cores: 4,
            required_memory_bytes: Some(15 << 30),
            gpu_count: Some(2),
            docker_image_name: Some("debian:12".to_owned()),
            ..Task::default()
        };
        assert_eq!(
            summary(&task),
            "VPS web.ann (request 7): 4 cores, 15G memory, 2 GPUs, of debian:12"
        );
    }
}
