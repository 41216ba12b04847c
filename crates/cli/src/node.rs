//! `kohakuriver node`: nodes and their join tokens.

mod drain;
mod health;
mod label;
mod list;
mod remove;
mod status;
mod token;

pub use list::grid;
pub use status::with_list_hint;

use crate::context::Context;
use crate::error::CommandError;

#[derive(clap::Subcommand, Clone, Debug)]
pub enum NodeCommand {
    /// List nodes.
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Show one node in detail.
    #[command(visible_alias = "show")]
    Status(status::StatusArgs),
    /// Show a node's load in the last hour.
    Health(health::HealthArgs),
    /// Stop placing new VPSes on a node.
    Drain(drain::DrainArgs),
    /// Allow new VPSes on a drained node again.
    Undrain(drain::UndrainArgs),
    /// Set and remove a node's labels, which new VPSes can require.
    Label(label::LabelArgs),
    /// Create tokens for computers to join with.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Remove a node and revoke its certificate.
    #[command(visible_alias = "rm")]
    Remove(remove::RemoveArgs),
}

pub async fn run(context: &Context, command: NodeCommand) -> Result<(), CommandError> {
    match command {
        NodeCommand::List(_) => list::run(context).await,
        NodeCommand::Status(args) => status::run(context, &args).await,
        NodeCommand::Health(args) => health::run(context, &args).await,
        NodeCommand::Drain(args) => drain::drain(context, &args).await,
        NodeCommand::Undrain(args) => drain::undrain(context, &args).await,
        NodeCommand::Label(args) => label::run(context, &args).await,
        NodeCommand::Token(command) => token::run(context, command).await,
        NodeCommand::Remove(args) => remove::run(context, &args).await,
    }
}
