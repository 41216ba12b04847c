use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Gid, Uid, chdir, pipe2, setgid, setgroups, setsid, setuid};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::{Children, Exit};
use crate::sys;

/// Larger than the default 64 KiB, so that a fast writer is woken less often. Only filled pages cost memory.
const PIPE_BYTES: usize = 256 * 1024;

/// The user and groups that a child runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// A child's standard input, output and error.
#[derive(Debug)]
pub(crate) enum Terminal {
    Pipes,
    /// The slave side of a terminal that becomes the child's controlling one.
    Pty(OwnedFd),
}

/// A program to start as the leader of its own session.
#[derive(Debug)]
pub(crate) struct ProcessSpec {
    pub program: OsString,
    pub arg0: Option<OsString>,
    pub args: Vec<OsString>,
    /// The whole environment: nothing is inherited beside it.
    pub env: Vec<(OsString, OsString)>,
    /// Where it starts, or `/` where that cannot be entered.
    pub directory: PathBuf,
    pub identity: Identity,
}

pub(crate) type Input = pipe::Sender;
pub(crate) type Output = pipe::Receiver;

/// A child that runs, and our ends of its pipes (none with a terminal).
#[derive(Debug)]
pub(crate) struct Started {
    pub pid: u32,
    pub exit: oneshot::Receiver<Exit>,
    pub pipes: Option<(Input, Output, Output)>,
}

/// Starts the program; it is registered with `children` before it can end.
pub(crate) fn start(
    children: &Children,
    spec: ProcessSpec,
    terminal: Terminal,
) -> io::Result<Started> {
    let mut command = Command::new(&spec.program);
    if let Some(arg0) = &spec.arg0 {
        command.arg0(arg0);
    }
    command.args(&spec.args).env_clear().envs(spec.env);

    let has_terminal = matches!(terminal, Terminal::Pty(_));
    let pipes = match terminal {
        Terminal::Pipes => {
            let (stdin_read, stdin_write) = new_pipe()?;
            let (stdout_read, stdout_write) = new_pipe()?;
            let (stderr_read, stderr_write) = new_pipe()?;
            command.stdin(Stdio::from(stdin_read));
            command.stdout(Stdio::from(stdout_write));
            command.stderr(Stdio::from(stderr_write));
            Some((
                pipe::Sender::from_owned_fd(stdin_write)?,
                pipe::Receiver::from_owned_fd(stdout_read)?,
                pipe::Receiver::from_owned_fd(stderr_read)?,
            ))
        }
        Terminal::Pty(slave) => {
            command.stdin(Stdio::from(slave.try_clone()?));
            command.stdout(Stdio::from(slave.try_clone()?));
            command.stderr(Stdio::from(slave));
            None
        }
    };

    let prepare = preparation(spec.identity, &spec.directory, has_terminal)?;
    sys::before_exec(&mut command, prepare);
    let (child, exit) = children.spawn(&mut command)?;
    // Dropping the command closes the child's ends here, without which no end of file would ever come.
    drop(command);
    Ok(Started { pid: child.id(), exit, pipes })
}

fn new_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    // Fails beyond the user's limit; the default size works too.
    let _ =
        fcntl(write.as_fd(), FcntlArg::F_SETPIPE_SZ(i32::try_from(PIPE_BYTES).unwrap_or(i32::MAX)));
    Ok((read, write))
}

/// Everything the closure needs is made here, before the fork: see [`sys::before_exec`].
pub(super) fn preparation(
    identity: Identity,
    directory: &std::path::Path,
    has_terminal: bool,
) -> io::Result<impl FnMut() -> io::Result<()> + Send + Sync + 'static> {
    let directory = CString::new(directory.as_os_str().as_bytes())?;
    let uid = Uid::from_raw(identity.uid);
    let gid = Gid::from_raw(identity.gid);
    let mut groups: Vec<Gid> = identity.groups.into_iter().map(Gid::from_raw).collect();
    groups.insert(0, gid);
    let privileged = Uid::effective().is_root();
    if !privileged && uid != Uid::effective() {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    Ok(move || {
        setsid()?;
        sys::default_signals();
        sys::childrens_file_limit();
        if has_terminal {
            sys::take_controlling_terminal()?;
        }
        if privileged {
            // A container may run without CAP_SETGID; only a user that must lose groups cannot do without.
            if let Err(error) = setgroups(&groups)
                && !uid.is_root()
            {
                return Err(error.into());
            }
            setgid(gid)?;
            setuid(uid)?;
        }
        if chdir(directory.as_c_str()).is_err() {
            chdir(c"/")?;
        }
        Ok(())
    })
}
