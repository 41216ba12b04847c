//! `kohakuriver connect`: a terminal in a VPS whose session outlives the connection.
//!
//! ```text
//!  first try --refused--> the reason, the end
//!     |
//!  attached --connection lost, or silent--> away --again--> attached, where it stopped
//!     |  \--detached (Enter ~ d)--> the session waits in the VPS
//!     |--shell ended--> its exit code
//! ```

mod link;
mod sessions;
mod stay;

use clap_complete::ArgValueCandidates;
use kohakuriver_agent_protocol::session::Attach;

use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;
use crate::tty;
use crate::vps;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
The session goes on in the VPS when the connection is lost, the host restarts or this machine
sleeps; this command comes back by itself and shows the screen as it is by then. Several people can
take part in one session.

After Enter, these keys are for this command and not for the VPS:
  ~d   detach: leave, and let the session go on (come back with --session)
  ~.   hang up: leave, and end the session unless it has a name of its own
  ~~   a tilde

A detached session nobody named ends after a day; a named one when its shell ends.

Examples:
  kohakuriver connect web                        a new shell
  kohakuriver connect web --session training     one to come back to, or to share
  kohakuriver connect web --list
  kohakuriver connect web --session training --read-only
  kohakuriver connect web --end training")]
pub struct ConnectArgs {
    /// Id or name
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_active))]
    vps: VpsRef,
    /// Session to take part in; made if there is none of that name
    #[arg(short, long, value_name = "NAME")]
    session: Option<String>,
    /// Watch only: nothing typed gets there
    #[arg(long, requires = "session")]
    read_only: bool,
    /// User of a new session [default: root]
    #[arg(short, long, value_name = "NAME")]
    user: Option<String>,
    /// List the VPS's sessions
    #[arg(short, long, conflicts_with_all = ["session", "end", "user"])]
    list: bool,
    /// End a session
    #[arg(long, value_name = "NAME", conflicts_with_all = ["session", "user"])]
    end: Option<String>,
}

pub async fn run(context: &Context, args: ConnectArgs) -> Result<(), CommandError> {
    if args.list {
        return sessions::list(context, &args.vps).await;
    }
    if let Some(name) = &args.end {
        return sessions::end(context, &args.vps, name).await;
    }
    if !tty::is_interactive() {
        let hint = format!("for scripts: kohakuriver terminal exec {} -- COMMAND", args.vps);
        return Err(CommandError::usage("connect needs a terminal").hint(hint));
    }
    let attach = Attach {
        session: args.session,
        read_only: args.read_only,
        size: tty::size(),
        term: tty::term(),
        locale: tty::locale(),
        user: args.user,
        client: rand::random(),
        ..Attach::default()
    };
    // The id: a name could belong to another VPS by the time the connection is back.
    let task = context.api.task_to_enter(args.vps.as_str()).await.map_err(vps::with_list_hint)?;
    let parting = stay::stay(context, &task.task_id, attach).await?;
    parting.tell(context, &args.vps)
}
