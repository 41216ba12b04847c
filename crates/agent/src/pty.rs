//! Terminals for SSH clients, `terminal exec` and sessions.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::stat::{Mode, fchmod};
use nix::sys::termios::{
    ControlFlags, InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices as Index,
    Termios, tcgetattr, tcsetattr,
};
use nix::unistd::{Gid, Uid, fchown, ttyname};
use russh::Pty;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::sys;

/// A client's request for a terminal.
#[derive(Debug, Clone)]
pub(crate) struct PtyRequest {
    pub term: String,
    pub size: Winsize,
    pub modes: Vec<(Pty, u32)>,
}

/// Makes a size; the protocol's numbers are wider than the kernel's.
pub(crate) fn window_size(columns: u32, rows: u32, width: u32, height: u32) -> Winsize {
    let narrow = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    Winsize {
        ws_row: narrow(rows),
        ws_col: narrow(columns),
        ws_xpixel: narrow(width),
        ws_ypixel: narrow(height),
    }
}

/// Our side of a terminal; clones share it, and the last one dropped hangs it up.
#[derive(Debug, Clone)]
pub(crate) struct Master(Arc<AsyncFd<OwnedFd>>);

/// A terminal that no process uses yet.
#[derive(Debug)]
pub(crate) struct NewPty {
    pub master: Master,
    pub slave: OwnedFd,
    pub path: PathBuf,
}

/// Opens a terminal that belongs to the user.
pub(crate) fn open(request: &PtyRequest, uid: u32) -> io::Result<NewPty> {
    let pair = openpty(Some(&request.size), None)?;
    for end in [&pair.master, &pair.slave] {
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    let mut termios = tcgetattr(&pair.slave)?;
    for (mode, value) in &request.modes {
        apply(&mut termios, *mode, *value);
    }
    tcsetattr(&pair.slave, SetArg::TCSANOW, &termios)?;
    let path = ttyname(&pair.slave)?;
    // Without the right to chown, the terminal already belongs to whom we run as.
    let _ = fchown(&pair.slave, Some(Uid::from_raw(uid)), None::<Gid>);
    let _ = fchmod(&pair.slave, Mode::from_bits_truncate(0o620));
    let flags = OFlag::from_bits_retain(fcntl(&pair.master, FcntlArg::F_GETFL)?);
    fcntl(&pair.master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(NewPty { master: Master(Arc::new(sys::watch(pair.master)?)), slave: pair.slave, path })
}

/// More than the kernel holds of what was written to a terminal and has not been read.
const MOST_LEFT_BEHIND: usize = 1024 * 1024;

/// The output of the programs in a terminal, up to the end of the one that it was opened for.
///
/// Other processes may keep the terminal open for as long as they like, so its end of file is not waited for. What the
/// program wrote before it ended has arrived in the terminal by then: a read that finds nothing has seen all of it.
#[derive(Debug)]
pub(crate) struct TerminalOutput {
    master: Master,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    /// How much of what is read may still be the program's; none while it runs.
    left: Option<usize>,
}

impl TerminalOutput {
    /// `ended` is cancelled when the program has ended.
    pub fn new(master: Master, ended: CancellationToken) -> Self {
        Self { master, ended: Box::pin(ended.cancelled_owned()), left: None }
    }
}

impl AsyncRead for TerminalOutput {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left.is_none() {
            if let Poll::Ready(read) = Pin::new(&mut self.master).poll_read(cx, buf) {
                return Poll::Ready(read);
            }
            ready!(self.ended.as_mut().poll(cx));
            self.left = Some(MOST_LEFT_BEHIND);
        }
        let left = self.left.unwrap_or(0);
        // Not by way of the runtime, which need not have heard yet that there is something.
        match nix::unistd::read(&self.master, buf.initialize_unfilled()) {
            // The rest of it is of others, who write on and on.
            Ok(count) if count <= left => {
                buf.advance(count);
                self.left = Some(left - count);
                Poll::Ready(Ok(()))
            }
            Ok(_) | Err(Errno::EAGAIN | Errno::EIO) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

impl Master {
    pub fn resize(&self, size: Winsize) {
        if let Err(error) = sys::set_window_size(self.0.get_ref().as_fd(), size) {
            tracing::debug!(%error, "terminal not resized");
        }
    }
}

impl AsFd for Master {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

impl AsyncRead for Master {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            let into = buf.initialize_unfilled();
            match ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), into)?)) {
                Ok(Ok(count)) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // The kernel's way to say that the last process has let go of the terminal.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::EIO as i32) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Master {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(written) = ready.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), buf)?)) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Sets one terminal mode of RFC 4254 section 8; modes that Linux lacks are passed over.
fn apply(termios: &mut Termios, mode: Pty, value: u32) {
    if let Some(index) = control_character(mode) {
        // 255 stands for "none", which Linux writes as 0.
        let character = u8::try_from(value).unwrap_or(u8::MAX);
        termios.control_chars[index as usize] = if character == u8::MAX { 0 } else { character };
        return;
    }
    let on = value != 0;
    if let Some(flag) = input_flag(mode) {
        termios.input_flags.set(flag, on);
    } else if let Some(flag) = local_flag(mode) {
        termios.local_flags.set(flag, on);
    } else if let Some(flag) = output_flag(mode) {
        termios.output_flags.set(flag, on);
    } else if mode == Pty::PARENB {
        termios.control_flags.set(ControlFlags::PARENB, on);
    } else if mode == Pty::PARODD {
        termios.control_flags.set(ControlFlags::PARODD, on);
    }
}

macro_rules! table {
    ($name:ident -> $type:ty { $($mode:ident => $value:expr,)* }) => {
        fn $name(mode: Pty) -> Option<$type> {
            [$((Pty::$mode, $value)),*].into_iter().find_map(|(known, value)| (known == mode).then_some(value))
        }
    };
}

table!(control_character -> Index {
    VINTR => Index::VINTR, VQUIT => Index::VQUIT, VERASE => Index::VERASE, VKILL => Index::VKILL,
    VEOF => Index::VEOF, VEOL => Index::VEOL, VEOL2 => Index::VEOL2, VSTART => Index::VSTART,
    VSTOP => Index::VSTOP, VSUSP => Index::VSUSP, VREPRINT => Index::VREPRINT,
    VWERASE => Index::VWERASE, VLNEXT => Index::VLNEXT, VDISCARD => Index::VDISCARD,
});

table!(input_flag -> InputFlags {
    IGNPAR => InputFlags::IGNPAR, PARMRK => InputFlags::PARMRK, INPCK => InputFlags::INPCK,
    ISTRIP => InputFlags::ISTRIP, INLCR => InputFlags::INLCR, IGNCR => InputFlags::IGNCR,
    ICRNL => InputFlags::ICRNL, IXON => InputFlags::IXON, IXANY => InputFlags::IXANY,
    IXOFF => InputFlags::IXOFF, IMAXBEL => InputFlags::IMAXBEL, IUTF8 => InputFlags::IUTF8,
});

table!(local_flag -> LocalFlags {
    ISIG => LocalFlags::ISIG, ICANON => LocalFlags::ICANON, ECHO => LocalFlags::ECHO,
    ECHOE => LocalFlags::ECHOE, ECHOK => LocalFlags::ECHOK, ECHONL => LocalFlags::ECHONL,
    NOFLSH => LocalFlags::NOFLSH, TOSTOP => LocalFlags::TOSTOP, IEXTEN => LocalFlags::IEXTEN,
    ECHOCTL => LocalFlags::ECHOCTL, ECHOKE => LocalFlags::ECHOKE, PENDIN => LocalFlags::PENDIN,
});

table!(output_flag -> OutputFlags {
    OPOST => OutputFlags::OPOST, OLCUC => OutputFlags::OLCUC, ONLCR => OutputFlags::ONLCR,
    OCRNL => OutputFlags::OCRNL, ONOCR => OutputFlags::ONOCR, ONLRET => OutputFlags::ONLRET,
});

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requested_modes_and_size_are_those_of_the_terminal() {
        let request = PtyRequest {
            term: "xterm".into(),
            size: window_size(132, 43, 0, 70_000),
            modes: vec![(Pty::ECHO, 0), (Pty::VINTR, 7), (Pty::VEOL, 255), (Pty::XCASE, 1)],
        };
        let pty = open(&request, nix::unistd::getuid().as_raw()).unwrap();
        let termios = tcgetattr(&pty.slave).unwrap();
        assert!(!termios.local_flags.contains(LocalFlags::ECHO));
        assert_eq!(termios.control_chars[Index::VINTR as usize], 7);
        assert_eq!(termios.control_chars[Index::VEOL as usize], 0);
        assert!(pty.path.starts_with("/dev/pts"));
    }
}
