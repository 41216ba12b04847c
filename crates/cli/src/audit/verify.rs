//! `kohakuriver audit verify`

use crate::context::Context;
use crate::error::CommandError;
use crate::ui::Panel;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Each entry has a hash over itself and the hash before it. Note the last one somewhere else: who
owns the host's machine can write another log, but not another log that ends with that hash.

Examples:
  kohakuriver audit verify
  kohakuriver audit verify --json | jq -r .last_hash")]
pub struct VerifyArgs {}

pub async fn run(context: &Context) -> Result<(), CommandError> {
    let found = context.api.verify_audit().await?;
    if context.out.json {
        context.out.json(&found);
    } else if found.intact {
        let mut panel = Panel::default();
        panel.add("audit log", "intact").add("entries", found.entries.to_string());
        if found.pruned > 0 {
            panel.add("removed", format!("{}, for their age or for the log's size", found.pruned));
        }
        panel.maybe("last hash", found.last_hash.as_deref()).print(context.out);
    }
    if found.intact {
        return Ok(());
    }
    let which = found.broken_at.map_or_else(|| "an entry".to_owned(), |seq| format!("entry {seq}"));
    Err(CommandError::request(format!("{which} of the audit log was changed"))
        .hint("compare `kohakuriver audit export` with one you kept elsewhere"))
}
