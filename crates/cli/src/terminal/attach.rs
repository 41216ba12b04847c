//! `kohakuriver terminal attach`

use clap_complete::ArgValueCandidates;
use kohakuriver_wire::StreamTarget;
use kohakuriver_wire::exec::{ExecStart, Tty};

use super::carry::carry;
use crate::complete;
use crate::context::Context;
use crate::failure::Failure;
use crate::reference::VpsRef;
use crate::tty;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
The way in when nothing else works: it needs neither SSH nor the agent inside the VPS, only its
container. `kohakuriver connect` is nicer: its sessions survive a lost connection.

Examples:
  kohakuriver terminal attach web
  kohakuriver terminal attach web --shell /bin/zsh")]
pub struct AttachArgs {
    /// Id or name
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_active))]
    vps: VpsRef,
    /// Shell to run [default: bash where there is one, else sh]
    #[arg(short, long, value_name = "PATH")]
    shell: Option<String>,
    /// User to run it as [default: the image's]
    #[arg(short, long, value_name = "NAME")]
    user: Option<String>,
}

pub async fn run(context: &Context, args: AttachArgs) -> Result<(), Failure> {
    let start = ExecStart {
        argv: args.shell.iter().map(|shell| shell.as_str().into()).collect(),
        user: args.user,
        tty: tty::is_interactive().then(|| Tty { term: tty::term(), size: tty::size() }),
        ..ExecStart::default()
    };
    let stream = context.api.stream(args.vps.as_str(), &StreamTarget::Attach).await?;
    carry(stream, start).await
}
