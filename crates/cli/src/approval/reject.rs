//! `kohakuriver approval reject`

use clap_complete::ArgValueCandidates;

use super::with_list_hint;
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;
use crate::vps::{ErrorReporter, called, print_json};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver approval reject web --reason 'please ask for at most 2 GPUs'")]
pub struct RejectArgs {
    /// Ids or names of requests.
    #[arg(required = true, value_name = "REQUEST", add = ArgValueCandidates::new(complete::requests))]
    requests: Vec<VpsRef>,
    /// Reason, which the requester can read.
    #[arg(short, long, value_name = "TEXT")]
    reason: Option<String>,
}

pub async fn run(context: &Context, args: &RejectArgs) -> Result<(), CommandError> {
    let mut troubles = ErrorReporter::new(context);
    let mut answers = Vec::new();
    for request in &args.requests {
        let rejected = async {
            let task = context.api.task(request.as_str()).await.map_err(with_list_hint)?;
            Ok((context.api.reject(&task.task_id, args.reason.as_deref()).await?, task))
        };
        match rejected.await {
            Ok((answer, task)) => {
                if !context.out.json {
                    context.out.line(format!("VPS {} is rejected", called(&task)));
                }
                answers.push(serde_json::to_value(&answer).unwrap_or_default());
            }
            Err(failure) => troubles.add(failure)?,
        }
    }
    if context.out.json {
        print_json(context, args.requests.len(), answers);
    }
    troubles.end()
}
