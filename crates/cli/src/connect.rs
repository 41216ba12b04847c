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
use crate::vps::vocabulary;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
The session keeps running in the VPS when the connection is lost, the host restarts or this computer
sleeps; the command reconnects by itself and shows the current screen. Several users can share one
session.

After Enter, these keys are for this command and not for the VPS:
  ~d   detach: leave, and let the session go on (come back with --session)
  ~.   hang up: leave, and end the session unless it has a name of its own
  ~~   a tilde

A detached session without a name ends after a day; a named one when its shell ends.

Examples:
  kohakuriver connect web                        a new shell
  kohakuriver connect web --session training     a named one, to resume or share
  kohakuriver connect web --list
  kohakuriver connect web --session training --read-only
  kohakuriver connect web --end training")]
pub struct ConnectArgs {
    /// Id or name of the VPS.
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_active))]
    vps: VpsRef,
    /// Session to join; created if it does not exist.
    #[arg(short, long, value_name = "NAME")]
    session: Option<String>,
    /// Watch the session without typing into it.
    #[arg(long, requires = "session")]
    read_only: bool,
    /// User of a new session [default: root].
    #[arg(short, long, value_name = "NAME")]
    user: Option<String>,
    /// List the VPS's sessions.
    #[arg(short, long, conflicts_with_all = ["session", "end", "user"])]
    list: bool,
    /// End a session.
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
    // By id, because the name could belong to another VPS after a reconnection.
    let task =
        context.api.task_to_enter(args.vps.as_str()).await.map_err(vocabulary::with_list_hint)?;
    let parting = stay::stay(context, &task.task_id, attach).await?;
    parting.tell(context, &args.vps)
}
