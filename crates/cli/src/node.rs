//! `kohakuriver node`: the machines.

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
    /// List nodes
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Show one node in detail
    #[command(visible_alias = "show")]
    Status(status::StatusArgs),
    /// Show how busy a node was in the last hour
    Health(health::HealthArgs),
    /// Let a node take no new VPSes
    Drain(drain::DrainArgs),
    /// Let a drained node take new VPSes again
    Undrain(drain::UndrainArgs),
    /// Set and remove labels, by which new VPSes choose nodes
    Label(label::LabelArgs),
    /// Tokens that let a machine join
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Remove a node and what it is trusted with
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
