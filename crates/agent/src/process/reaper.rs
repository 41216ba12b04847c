use std::collections::HashMap;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::sys;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal { number: i32, core_dumped: bool },
}

/// Which ended processes the reaper collects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReapMode {
    /// Every one: the agent is PID 1 or a subreaper, and owns its whole process.
    All,
    /// Those started through [`Children::spawn`] alone: in a guest, orphans are init's.
    Registered,
}

/// The living children by process id, each with who waits for its end.
pub(crate) struct Children {
    mode: ReapMode,
    waiting: Mutex<HashMap<i32, oneshot::Sender<Exit>>>,
}

impl fmt::Debug for Children {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Children").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Children {
    pub fn new(mode: ReapMode) -> Self {
        Self { mode, waiting: Mutex::default() }
    }

    /// Starts a child; its end arrives on the receiver.
    ///
    /// The lock is held from fork to registration, so the reaper cannot collect the child in between; it also keeps
    /// the reaper away while the standard library itself waits for a child whose exec failed.
    pub fn spawn(&self, command: &mut Command) -> io::Result<(Child, oneshot::Receiver<Exit>)> {
        let mut waiting = self.lock();
        let child = command.spawn()?;
        let (sender, receiver) = oneshot::channel();
        waiting.insert(child.id().cast_signed(), sender);
        Ok((child, receiver))
    }

    /// Collects ended children for as long as it is polled.
    pub async fn reap(&self) -> io::Result<()> {
        let mut child_ended = signal(SignalKind::child())?;
        loop {
            self.collect();
            if child_ended.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    /// Collects every child that has ended by now.
    pub fn collect(&self) {
        let mut waiting = self.lock();
        match self.mode {
            ReapMode::All => {
                while let Some((pid, status)) = sys::wait_nohang(-1) {
                    report(&mut waiting, pid, status);
                }
            }
            ReapMode::Registered => {
                let pids: Vec<i32> = waiting.keys().copied().collect();
                for pid in pids {
                    if let Some((pid, status)) = sys::wait_nohang(pid) {
                        report(&mut waiting, pid, status);
                    }
                }
            }
        }
    }

    /// Ends all children: SIGTERM, and SIGKILL for what is left after `grace`.
    pub async fn end_all(&self, grace: Duration) {
        self.signal_all(Signal::SIGTERM);
        // Stopped processes must run to see the signal.
        self.signal_all(Signal::SIGCONT);
        let deadline = tokio::time::Instant::now() + grace;
        while tokio::time::Instant::now() < deadline {
            self.collect();
            if self.none_left() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.signal_all(Signal::SIGKILL);
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.collect();
    }

    fn none_left(&self) -> bool {
        if is_init() {
            // Nobody to signal means nobody but us in this PID namespace.
            return kill(Pid::from_raw(-1), None).is_err();
        }
        self.lock().is_empty()
    }

    fn signal_all(&self, signal: Signal) {
        if is_init() {
            let _ = kill(Pid::from_raw(-1), signal);
            return;
        }
        // Every child of ours leads a session, hence a process group.
        for pid in self.lock().keys() {
            let _ = killpg(Pid::from_raw(*pid), signal);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, oneshot::Sender<Exit>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether `kill(-1)` means "this instance" and not "this machine".
fn is_init() -> bool {
    std::process::id() == 1
}

fn report(waiting: &mut HashMap<i32, oneshot::Sender<Exit>>, pid: i32, status: i32) {
    let exit = if libc::WIFEXITED(status) {
        Exit::Code(libc::WEXITSTATUS(status))
    } else {
        Exit::Signal { number: libc::WTERMSIG(status), core_dumped: libc::WCOREDUMP(status) }
    };
    if let Some(waiter) = waiting.remove(&pid) {
        // The session may have gone: then nobody needs the status.
        let _ = waiter.send(exit);
    } else {
        tracing::debug!(pid, ?exit, "orphan reaped");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn every_registered_child_gets_its_own_exit_even_when_many_end_at_once() {
        let children = Arc::new(Children::new(ReapMode::Registered));
        let reaper = Arc::clone(&children);
        let task = tokio::spawn(async move { reaper.reap().await });
        let mut exits = Vec::new();
        for code in 0..40 {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", &format!("exit {code}")]);
            exits.push((code, children.spawn(&mut command).unwrap().1));
        }
        for (code, exit) in exits {
            assert_eq!(exit.await.unwrap(), Exit::Code(code));
        }
        task.abort();
    }

    #[tokio::test]
    async fn a_death_by_a_realtime_signal_is_reported_and_foreign_children_are_left_alone() {
        let children = Children::new(ReapMode::Registered);
        let mut foreign = Command::new("/bin/sh").args(["-c", "exit 3"]).spawn().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "kill -40 $$; sleep 5"]);
        let (_child, exit) = children.spawn(&mut command).unwrap();
        let reaping = children.reap();
        tokio::select! {
            _ = reaping => unreachable!(),
            exit = exit => assert!(matches!(exit.unwrap(), Exit::Signal { number: 40, .. })),
        }
        assert_eq!(foreign.wait().unwrap().code(), Some(3));
    }

    #[test]
    fn a_failed_exec_is_an_error_and_registers_nothing() {
        let children = Children::new(ReapMode::Registered);
        assert!(children.spawn(&mut Command::new("/no/such/program")).is_err());
        assert!(children.lock().is_empty());
    }
}
