//! `kohakuriver qemu`: a computer's support for virtual machines, and their base images.

pub mod check;
pub mod image;

use kohakuriver_cli::OnNode;

use image::{ImageCommand, ListArgs};

#[derive(Debug, clap::Subcommand)]
pub enum QemuCommand {
    /// Check this computer's support for virtual machines.
    Check(check::CheckArgs),
    /// Create, list and delete the base images of virtual machines.
    #[command(subcommand)]
    Image(ImageCommand),
    /// The commands that the host serves.
    #[command(flatten)]
    Host(kohakuriver_cli::QemuCommand),
}

/// A command, by the side that runs it.
pub enum Part {
    Check(check::CheckArgs),
    Here(ImageCommand),
    Host(kohakuriver_cli::QemuCommand),
}

impl QemuCommand {
    pub fn part(self) -> Part {
        match self {
            Self::Check(args) => Part::Check(args),
            Self::Host(command) => Part::Host(command),
            Self::Image(ImageCommand::List(ListArgs {
                on: OnNode { node: Some(node) }, ..
            })) => Part::Host(kohakuriver_cli::QemuCommand::Images(node)),
            Self::Image(command) => Part::Here(command),
        }
    }
}
