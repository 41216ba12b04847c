//! `kohakuriver qemu`: what a machine has for virtual machines.

pub mod image;

#[derive(Debug, clap::Subcommand)]
pub enum QemuCommand {
    /// Make, list and delete the images that virtual machines are made from
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// What a host is asked.
    #[command(flatten)]
    Host(kohakuriver_cli::QemuCommand),
}
