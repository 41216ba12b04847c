//! `kohakuriver qemu`, as far as the host answers it: base images that a node sees, and what
//! virtual machines keep on the nodes. What is done on this machine itself is the executable's.

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
    /// List what virtual machines keep on their nodes, also what nobody owns any more
    Instances(instances::InstancesArgs),
    /// Delete a virtual machine, or what one that is no VPS any more left on its node
    Cleanup(cleanup::CleanupArgs),
    /// For `image list --node`, which the executable parses.
    #[command(skip)]
    Images(NodeName),
}

/// For commands that look at this machine unless another is named.
#[derive(clap::Args, Clone, Debug)]
pub struct OnNode {
    /// What this node sees, asked through the host, instead of this machine
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
