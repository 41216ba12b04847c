//! A command in a terminal of its own, and the person at it.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::libc;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::PATIENCE;

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);

#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: File,
    shown: Arc<Mutex<String>>,
}

impl Terminal {
    /// Starts the command with the terminal as its controlling one, 80 columns by 24 rows.
    pub fn start(command: &Command) -> Self {
        let (keyboard, child) = spawn(command);
        let mut screen = keyboard.try_clone().expect("a descriptor");
        let shown = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&shown);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = screen.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
                sink.lock().expect("no one panics holding it").push_str(&text);
            }
        });
        Self { child, keyboard, shown }
    }

    /// The same with nobody at it: the caller reads and writes the terminal itself.
    pub fn raw(command: &Command) -> (File, Self) {
        let (keyboard, child) = spawn(command);
        let theirs = keyboard.try_clone().expect("a descriptor");
        (theirs, Self { child, keyboard, shown: Arc::default() })
    }

    pub fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).expect("the terminal is there");
    }

    /// Everything that was written to it.
    pub fn shown(&self) -> String {
        self.shown.lock().expect("no one panics holding it").clone()
    }

    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.shown().contains(text) {
            assert!(Instant::now() < deadline, "no {text:?} in {:?}", self.shown());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[expect(unsafe_code, reason = "TIOCSWINSZ has no safe wrapper")]
    pub fn resize(&self, rows: u16, cols: u16) {
        use std::os::fd::AsRawFd;
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the kernel only reads the structure behind the pointer.
        unsafe { set_window_size(self.keyboard.as_raw_fd(), &raw const size) }.expect("a terminal");
    }

    /// The exit code, once the command has ended.
    #[track_caller]
    pub fn wait(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "it does not end: {:?}", self.shown());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn spawn(command: &Command) -> (File, Child) {
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let pair = openpty(Some(&size), None).expect("a terminal");
    // setsid(1) makes the terminal the command's own without any unsafe code of ours.
    let mut with_terminal = Command::new("setsid");
    with_terminal.args(["--ctty", "--wait"]).arg(command.get_program());
    with_terminal.args(command.get_args()).env_clear().env("TERM", "xterm-256color");
    with_terminal.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    for (name, value) in command.get_envs() {
        with_terminal.env(name, value.unwrap_or_default());
    }
    let slave = || Stdio::from(pair.slave.try_clone().expect("a descriptor"));
    with_terminal.stdin(slave()).stdout(slave()).stderr(slave());
    let child = with_terminal.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    (File::from(pair.master), child)
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).expect("pids are small");
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}
