//! The user's terminal: raw mode, size, and non-blocking standard streams.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::thread;

use bytes::Bytes;
use kohakuriver_agent_protocol::exec::Size;
use nix::libc;
use nix::sys::termios::{self, SetArg, Termios};
use tokio::sync::mpsc;

use crate::stdout;

const BLOCK: usize = 32 * 1024;
/// The terminal type where the environment names none.
const DEFAULT_TERM: &str = "xterm-256color";

nix::ioctl_read_bad!(window_size, libc::TIOCGWINSZ, libc::winsize);

/// Returns whether standard input and output are the same user's terminal.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && stdout::is_terminal()
}

/// Returns the terminal type, for the program at the other end.
/// Returns the locale variables of this process, for a program that writes to this terminal.
pub fn locale() -> Vec<(String, String)> {
    let is_locale = |name: &str| name == "LANG" || name.starts_with("LC_");
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, value)| is_locale(name) && !value.is_empty())
        .collect()
}

pub fn term() -> String {
    std::env::var("TERM").ok().filter(|term| !term.is_empty()).unwrap_or(DEFAULT_TERM.to_owned())
}

/// Returns the terminal's size, or zeros where there is no terminal.
#[expect(unsafe_code, reason = "TIOCGWINSZ has no safe wrapper")]
pub fn size() -> Size {
    let mut found = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    for fd in [libc::STDOUT_FILENO, libc::STDIN_FILENO] {
        // SAFETY: the kernel writes the structure behind the pointer and nothing else.
        if unsafe { window_size(fd, &raw mut found) }.is_ok() {
            return Size { rows: found.ws_row, cols: found.ws_col };
        }
    }
    Size::default()
}

/// Raw mode, until dropped.
#[derive(Debug)]
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// # Errors
    /// Standard input is no terminal.
    pub fn enter() -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

/// Returns a channel of the input. It closes at the end of input. The reading thread may wait
/// forever and ends with the process.
pub fn read_input() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(2);
    thread::spawn(move || {
        let mut buffer = vec![0; BLOCK];
        loop {
            match io::stdin().read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => {
                    let data = Bytes::copy_from_slice(buffer.get(..read).unwrap_or_default());
                    if sender.blocking_send(data).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    receiver
}

/// A standard output with a writer thread, so that a paused reader does not block signals.
#[derive(Debug)]
pub struct Outlet {
    queue: Option<mpsc::Sender<Bytes>>,
    thread: Option<thread::JoinHandle<io::Result<()>>>,
}

impl Outlet {
    pub fn stdout() -> Self {
        Self::start(stdout::write)
    }

    pub fn stderr() -> Self {
        Self::start(|data| stdout::write_all(io::stderr().as_fd(), data))
    }

    fn start(write: fn(&[u8]) -> io::Result<()>) -> Self {
        let (queue, mut waiting) = mpsc::channel::<Bytes>(8);
        let thread = thread::spawn(move || {
            while let Some(data) = waiting.blocking_recv() {
                write(&data)?;
            }
            Ok(())
        });
        Self { queue: Some(queue), thread: Some(thread) }
    }

    /// # Errors
    /// The reader has gone.
    pub async fn write(&self, data: Bytes) -> io::Result<()> {
        match &self.queue {
            Some(queue) => queue.send(data).await.map_err(|_| io::ErrorKind::BrokenPipe.into()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// The error of the write.
    pub async fn finish(mut self) -> io::Result<()> {
        drop(self.queue.take());
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        let joined = tokio::task::spawn_blocking(move || thread.join());
        match joined.await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(io::Error::other("the output's thread failed")),
        }
    }
}

/// Writes text to standard error in raw mode, before a program's output.
pub fn write_now(text: &str) {
    let mut stderr = io::stderr();
    let _ = stderr.write_all(text.as_bytes());
    let _ = stderr.flush();
}
