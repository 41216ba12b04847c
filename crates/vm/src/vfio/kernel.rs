//! The few things that are told to the kernel; everything else is only read.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

/// A driver takes a second or two to let go of a GPU, and a large one some ten to take it back.
/// One that has not done it by then waits for something that may never come.
const LIMIT: Duration = Duration::from_secs(30);

/// Stands between the acts and the machine, so that a test can end the process after any of them.
pub trait Kernel: std::fmt::Debug + Send + Sync {
    /// Writes to a file of sysfs.
    fn write(&self, file: &Path, text: &str) -> io::Result<()>;
    /// `modprobe`.
    fn load_module(&self, name: &str) -> io::Result<()>;
}

/// This machine's.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunningKernel;

impl Kernel for RunningKernel {
    /// A thread of its own does it: a write that a driver does not finish cannot be given up,
    /// only left alone.
    fn write(&self, file: &Path, text: &str) -> io::Result<()> {
        let (file, text) = (file.to_owned(), text.to_owned());
        within(LIMIT, move || OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes()))
    }

    fn load_module(&self, name: &str) -> io::Result<()> {
        let mut modprobe = Command::new("modprobe");
        modprobe.args(["--", name]).stdin(Stdio::null()).stdout(Stdio::null());
        let output = within(LIMIT, move || modprobe.stderr(Stdio::piped()).output())?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("modprobe {name}: {}", said.trim())))
    }
}

fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (done, outcome) = sync_channel(1);
    thread::Builder::new().name("vfio-kernel".to_owned()).spawn(move || {
        // Nobody listens any more after the limit.
        let _ = done.send(work());
    })?;
    match outcome.recv_timeout(limit) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("the kernel has not done it within {} s", limit.as_secs()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_does_not_answer_is_left_alone() {
        let slow = || {
            thread::sleep(Duration::from_secs(5));
            Ok(())
        };
        let error = within(Duration::from_millis(20), slow).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(within(LIMIT, || Ok(7)).unwrap(), 7);
    }

    #[test]
    fn a_file_that_is_not_there_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("unbind");
        assert!(RunningKernel.write(&file, "x").is_err());
        assert!(!file.exists());
    }
}
