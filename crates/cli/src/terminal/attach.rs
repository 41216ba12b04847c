//! `kohakuriver terminal attach`

use clap_complete::ArgValueCandidates;
use kohakuriver_agent_protocol::StreamTarget;
use kohakuriver_agent_protocol::exec::{ExecStart, Tty};
use kohakuriver_api::Task;

use super::carry::{Far, carry};
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;
use crate::tty;
use crate::vps::vocabulary::{called, is_machine, with_list_hint};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
The way in when nothing else works: it needs neither SSH nor the agent inside the VPS.
`kohakuriver connect` is nicer: its sessions survive a lost connection.

Container: a shell run by the container engine.

Virtual machine: its serial console, from the start of its boot. Log in as on any console; press Enter
if it is blank. All attached users see and type into the same console. After
Enter, these keys are for this command and not for the machine:
  ~d   leave (so does ~.); the machine goes on
  ~~   a tilde

Examples:
  kohakuriver terminal attach web
  kohakuriver terminal attach web --shell /bin/zsh
  kohakuriver terminal attach vm                    watch a virtual machine boot
  kohakuriver terminal attach vm < /dev/null > boot.log")]
pub struct AttachArgs {
    /// Id or name of the VPS.
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_active))]
    vps: VpsRef,
    /// Shell to run in a container [default: bash if the container has it, else sh].
    #[arg(short, long, value_name = "PATH")]
    shell: Option<String>,
    /// User of the shell [default: the image's].
    #[arg(short, long, value_name = "NAME")]
    user: Option<String>,
}

pub async fn run(context: &Context, args: AttachArgs) -> Result<(), CommandError> {
    let task = context.api.task_to_enter(args.vps.as_str()).await.map_err(with_list_hint)?;
    let tty = tty::is_interactive().then(|| Tty { term: tty::term(), size: tty::size() });
    if is_machine(&task) {
        return console(context, &args, &task, tty).await;
    }
    let start = ExecStart {
        argv: args.shell.iter().map(|shell| shell.as_str().into()).collect(),
        user: args.user,
        tty,
        ..ExecStart::default()
    };
    let stream = context.api.stream(&task.task_id, &StreamTarget::Attach).await?;
    carry(stream, start, Far::Program).await
}

/// Attaches to a VM's console until the user leaves it or the VM stops.
async fn console(
    context: &Context,
    args: &AttachArgs,
    task: &Task,
    tty: Option<Tty>,
) -> Result<(), CommandError> {
    let name = called(task);
    if args.shell.is_some() || args.user.is_some() {
        return Err(CommandError::usage(format!(
            "--shell and --user are for containers, and {name} is a virtual machine"
        ))
        .hint(format!(
            "log in at its console; `kohakuriver terminal exec {name}` runs any program"
        )));
    }
    let stream = context.api.stream(&task.task_id, &StreamTarget::Attach).await?;
    let by_hand = tty.is_some();
    if by_hand {
        context.out.note(format!("console of VPS {name}; leave it with Enter, then ~d"));
    }
    carry(stream, ExecStart { tty, ..ExecStart::default() }, Far::Console).await?;
    if by_hand {
        context.out.note("");
        context.out.note(format!("left the console of VPS {name}"));
    }
    Ok(())
}
