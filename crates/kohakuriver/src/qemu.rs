//! `kohakuriver qemu`: what a machine has for virtual machines.

pub mod check;
pub mod image;

use kohakuriver_cli::OnNode;

use image::{ImageCommand, ListArgs};

#[derive(Debug, clap::Subcommand)]
pub enum QemuCommand {
    /// Tell what this machine has for virtual machines, and what is missing
    Check(check::CheckArgs),
    /// Make, list and delete the images that virtual machines are made from
    #[command(subcommand)]
    Image(ImageCommand),
    /// What a host is asked.
    #[command(flatten)]
    Host(kohakuriver_cli::QemuCommand),
}

/// Who does it.
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
