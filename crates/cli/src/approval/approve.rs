//! `kohakuriver approval approve`

use clap_complete::ArgValueCandidates;

use super::{of_owner, with_list_hint};
use crate::complete;
use crate::context::Context;
use crate::failure::Failure;
use crate::reference::VpsRef;
use crate::vps::{Troubles, called, print_json};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver approval approve web
  kohakuriver approval approve $(kohakuriver approval list --json | jq -r '.[].task_id')")]
pub struct ApproveArgs {
    /// Ids or names
    #[arg(required = true, value_name = "REQUEST", add = ArgValueCandidates::new(complete::requests))]
    requests: Vec<VpsRef>,
}

pub async fn run(context: &Context, args: &ApproveArgs) -> Result<(), Failure> {
    let mut troubles = Troubles::new(context);
    let mut answers = Vec::new();
    for request in &args.requests {
        let approved = async {
            let task = context.api.task(request.as_str()).await.map_err(with_list_hint)?;
            Ok((context.api.approve(&task.task_id).await?, task))
        };
        match approved.await {
            Ok((answer, task)) => {
                if !context.out.json {
                    let (name, owner) = (called(&task), of_owner(&task));
                    context.out.line(format!("VPS {name}{owner} is approved, and being created"));
                }
                answers.push(answer);
            }
            Err(failure) => troubles.add(failure)?,
        }
    }
    if context.out.json {
        print_json(context, args.requests.len(), answers);
    }
    troubles.end()
}
