//! `kohakuriver audit`: the log of all actions.

mod export;
mod list;
mod verify;

use crate::context::Context;
use crate::error::CommandError;

#[derive(clap::Subcommand, Clone, Debug)]
pub enum AuditCommand {
    /// List the newest entries.
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Check that no entry was changed or removed.
    Verify(verify::VerifyArgs),
    /// Write all entries as JSON lines, oldest first.
    Export(export::ExportArgs),
}

pub async fn run(context: &Context, command: AuditCommand) -> Result<(), CommandError> {
    match command {
        AuditCommand::List(args) => list::run(context, &args).await,
        AuditCommand::Verify(_) => verify::run(context).await,
        AuditCommand::Export(args) => export::run(context, &args).await,
    }
}
