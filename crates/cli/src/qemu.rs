//! The `kohakuriver qemu` commands that the host serves: base images on a node, and the files of
//! virtual machines on the nodes. The executable has the commands for the local computer.

mod cleanup;
mod images;
mod instances;

use clap_complete::ArgValueCandidates;
use kohakuriver_model::NodeName;

use crate::complete;
use crate::context::Context;
use crate::error::CommandError;

#[derive(clap::Subcommand, Clone, Debug)]
pub enum QemuCommand {
    /// List virtual machines and their disk usage on the nodes, including orphaned ones.
    Instances(instances::InstancesArgs),
    /// Delete a virtual machine, or the files of an orphaned one.
    Cleanup(cleanup::CleanupArgs),
    /// For `image list --node`, which the executable parses.
    #[command(skip)]
    Images(NodeName),
}

/// The option of commands that inspect the local computer by default.
#[derive(clap::Args, Clone, Debug)]
pub struct OnNode {
    /// Query this node through the host [default: this computer].
    #[arg(long, value_name = "NODE", add = ArgValueCandidates::new(complete::nodes))]
    pub node: Option<NodeName>,
}

pub async fn run(context: &Context, command: QemuCommand) -> Result<(), CommandError> {
    match command {
        QemuCommand::Instances(_) => instances::run(context).await,
        QemuCommand::Cleanup(args) => cleanup::run(context, &args).await,
        QemuCommand::Images(node) => images::run(context, &node).await,
    }
}
