//! `kohakuriver terminal exec`

use std::ffi::OsString;

use clap_complete::ArgValueCandidates;
use kohakuriver_agent_protocol::StreamTarget;
use kohakuriver_agent_protocol::exec::{ExecStart, Tty};

use super::carry::{Far, carry};
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;
use crate::tty;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
The program gets exactly these arguments, without a shell; for one, write `sh -c '...'`. If standard
input and output are terminals, it gets one; otherwise output and errors stay separate. Signals are
passed on, and a program whose client goes away is hung up (SIGHUP).

Exit code: the program's; 128 and the signal's number if one ended it; 127 if there is no such
program, 126 if it cannot be started.

Examples:
  kohakuriver terminal exec web -- ps aux
  kohakuriver terminal exec web -- sh -c 'cat > /root/data.csv' < data.csv
  kohakuriver terminal exec web -u nobody -w /srv -e MODE=test -- ./run-tests")]
pub struct ExecArgs {
    /// Id or name of the VPS.
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_active))]
    vps: VpsRef,
    /// Give the program a terminal even if standard input or output is not one.
    #[arg(short = 't', long, conflicts_with = "no_tty")]
    tty: bool,
    /// Do not give the program a terminal.
    #[arg(short = 'T', long)]
    no_tty: bool,
    /// User of the program [default: root].
    #[arg(short, long, value_name = "NAME")]
    user: Option<String>,
    /// Working directory [default: the user's home].
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Environment variable; repeatable.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Program and its arguments.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "COMMAND"
    )]
    command: Vec<OsString>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err("write NAME=VALUE".to_owned()),
    }
}

pub async fn run(context: &Context, args: ExecArgs) -> Result<(), CommandError> {
    let terminal = args.tty || (!args.no_tty && tty::is_interactive());
    let start = ExecStart {
        argv: args.command.iter().map(|word| word.as_os_str().into()).collect(),
        env: args.env,
        locale: if terminal { tty::locale() } else { Vec::new() },
        workdir: args.workdir,
        user: args.user,
        tty: terminal.then(|| Tty { term: tty::term(), size: tty::size() }),
    };
    let stream = context.api.stream(args.vps.as_str(), &StreamTarget::Exec).await?;
    carry(stream, start, Far::Program).await
}
