//! Follows a running QEMU until it is gone, and records its end.
//!
//! ```text
//!  launched | adopted --> watched --guest off, panic--> verdict written --quit--> gone
//!                            |--stop: powerdown, in time or quit--> gone
//!                            '--killed, crashed--> gone --> what the machine had around it goes
//! ```
//!
//! A guest that ended by itself leaves its QEMU behind, frozen, until a runner has read how it
//! ended: the runner that is there, or the next one. So no end is missed and none is guessed.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kohakuriver_vm::command::{QMP_SOCKET, RUN_DIR};
use kohakuriver_vm::launch::Process;
use kohakuriver_vm::qmp::{Event, Qmp, QmpError};
use serde_json::{Value, json};
use tokio::process::Child;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::console::Console;
use super::oom::{self, OUT_OF_MEMORY};
use super::record::MachineDir;

/// A QEMU that runs has its sockets.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// A new QEMU creates its sockets before anything slow, on a node that may be busy; if it ends instead,
/// that is noticed.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Between two presses of the power button: one that comes too early in a boot is not heard.
const PRESS_AGAIN: Duration = Duration::from_secs(5);
/// Between two tries to let a machine go on that waits for space.
const GO_ON_AGAIN: Duration = Duration::from_secs(5);
/// QEMU writes back what it holds of the disk.
const QUIT_LIMIT: Duration = Duration::from_secs(10);
/// The exit code of a killed process.
const KILLED: i64 = 137;

pub struct Live {
    pub qmp: Qmp,
    pub console: Option<Console>,
    process: Process,
    dir: MachineDir,
    gone: watch::Sender<bool>,
    stalled: AtomicBool,
    /// Why it has no network.
    detached: Mutex<Option<String>>,
}

/// The outcome of a guest's own end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Verdict {
    exit_code: i64,
    reason: &'static str,
}

impl Live {
    /// Connects to the QEMU of the newest start. `child`: as far as it is ours.
    ///
    /// # Errors
    /// QEMU ended, with what it said, or does not answer.
    pub async fn connect(dir: MachineDir, mut child: Option<Child>) -> Result<Started, String> {
        let run = dir.path().join(RUN_DIR);
        let connected = async {
            let limit = if child.is_some() { START_LIMIT } else { CONNECT_LIMIT };
            let connect = Qmp::connect(&run, QMP_SOCKET, limit);
            match &mut child {
                None => connect.await.map_err(|error| error.to_string()),
                Some(child) => tokio::select! {
                    qmp = connect => qmp.map_err(|error| error.to_string()),
                    status = child.wait() => Err(match status {
                        Ok(status) => format!("QEMU ended with {status}"),
                        Err(error) => error.to_string(),
                    }),
                },
            }
        };
        let qmp = connected.await?;
        let (process, _) = dir.started().ok_or("there is no record of its start")?;
        let console = match Console::connect(dir.path()).await {
            Ok(console) => Some(console),
            Err(error) => {
                tracing::warn!(%error, "a machine's console cannot be reached");
                None
            }
        };
        let (gone, stalled) = (watch::Sender::new(false), AtomicBool::new(false));
        let detached = Mutex::default();
        let live = Arc::new(Self { qmp, console, process, dir, gone, stalled, detached });
        Ok(Started { live, child })
    }

    /// Presses the power button until the guest is off, or ends it when `grace` is over.
    pub async fn stop(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        while Instant::now() < deadline {
            if let Err(error) = self.qmp.execute("system_powerdown", json!({})).await {
                tracing::debug!(%error, "the power button cannot be pressed");
            }
            let next = deadline.min(Instant::now() + PRESS_AGAIN);
            if self.wait_until(next).await {
                return;
            }
        }
        tracing::info!(dir = %self.dir.path().display(), "the guest did not power off in time");
        self.write_end(Some(KILLED), "it did not power off in time");
        self.quit().await;
    }

    /// Pulls the plug.
    pub async fn kill(&self) {
        self.write_end(Some(KILLED), "");
        self.process.kill();
        self.wait_until(Instant::now() + QUIT_LIMIT).await;
    }

    /// Waits until a QEMU that is about to end is gone, so that no caller meets its leftovers.
    pub async fn settle(&self) {
        if !self.process.is_alive() {
            let _ = timeout(QUIT_LIMIT, self.wait_gone()).await;
        }
    }

    /// Waits until it is gone and all is written and cleared away.
    pub async fn wait_gone(&self) {
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }

    async fn wait_until(&self, deadline: Instant) -> bool {
        tokio::time::timeout_at(deadline, self.wait_gone()).await.is_ok()
    }

    async fn quit(&self) {
        let _ = self.qmp.execute("quit", json!({})).await;
        if timeout(QUIT_LIMIT, self.until_dead()).await.is_err() {
            tracing::warn!(pid = self.process.pid, "a QEMU does not quit; it is killed");
            self.process.kill();
        }
    }

    async fn until_dead(&self) {
        let mut pause = Duration::from_millis(2);
        while self.process.is_alive() {
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    fn write_end(&self, exit_code: Option<i64>, reason: &str) {
        if let Err(error) = self.dir.write_ended(exit_code, reason, false) {
            tracing::warn!(%error, "how a machine ended cannot be written");
        }
    }

    fn write_oom(&self) {
        if let Err(error) = self.dir.write_ended(Some(KILLED), OUT_OF_MEMORY, true) {
            tracing::warn!(%error, "how a machine ended cannot be written");
        }
    }

    /// It waits for space on the node's disk.
    pub fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }

    pub fn process(&self) -> Process {
        self.process
    }

    /// Returns the reason why the VM is detached from its network, if it is.
    pub fn detached(&self) -> Option<String> {
        self.detached.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the reason; returns whether it changed.
    pub fn set_detached(&self, reason: Option<String>) -> bool {
        let mut detached = self.detached.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *detached != reason;
        *detached = reason;
        changed
    }

    /// Follows QEMU until it is gone. Calls `changed` when a warning changes.
    async fn listen(&self, changed: &(dyn Fn() + Send + Sync)) {
        let mut events = self.qmp.events();
        // Events from before the subscription are missed.
        let mut state = self.look().await;
        loop {
            match state {
                State::Over(Verdict { exit_code, reason }) => {
                    self.write_end(Some(exit_code), reason);
                    self.quit().await;
                    return;
                }
                State::Stalled if !self.stalled.swap(true, Ordering::Relaxed) => changed(),
                State::Runs if self.stalled.swap(false, Ordering::Relaxed) => changed(),
                State::Stalled | State::Runs => {}
            }
            if self.qmp.is_gone() {
                return;
            }
            let again = async {
                match self.is_stalled() {
                    true => sleep(GO_ON_AGAIN).await,
                    false => std::future::pending().await,
                }
            };
            state = tokio::select! {
                event = events.recv() => match event {
                    Ok(event) => match judge(&event) {
                        Some(verdict) => State::Over(verdict),
                        // It stopped for a reason that only its state tells.
                        None if event.name == "STOP" || event.name == "RESUME" => self.look().await,
                        None => state,
                    },
                    Err(RecvError::Lagged(_)) => self.look().await,
                    Err(RecvError::Closed) => return,
                },
                () = again => {
                    let _ = self.qmp.execute("cont", json!({})).await;
                    self.look().await
                }
            };
        }
    }

    async fn look(&self) -> State {
        let state = self.qmp.execute("query-status", json!({})).await.unwrap_or_default();
        match state["status"].as_str() {
            Some("shutdown") => State::Over(POWERED_OFF),
            Some("guest-panicked") => State::Over(PANICKED),
            Some("internal-error") => State::Over(BROKEN),
            Some("io-error") => State::Stalled,
            Some(_) | None => State::Runs,
        }
    }
}

/// The state of a VM's QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Runs,
    /// Its disk cannot be written: it is paused until it is resumed.
    Stalled,
    Over(Verdict),
}

/// A QEMU that was just connected to.
pub struct Started {
    pub live: Arc<Live>,
    child: Option<Child>,
}

impl Started {
    /// Follows it to its end, has `clear` clear away what it had, and says that it is gone.
    pub async fn follow<F: Future<Output = ()>>(
        mut self,
        changed: &(dyn Fn() + Send + Sync),
        clear: impl FnOnce() -> F,
    ) {
        let live = &self.live;
        live.listen(changed).await;
        let status = match &mut self.child {
            Some(child) => child.wait().await.ok(),
            None => None,
        };
        live.until_dead().await;
        if live.dir.known_end().is_none() && killed_for_memory(live.process).await {
            live.write_oom();
        }
        live.write_end(status.and_then(code), &status.map_or(String::new(), describe));
        clear().await;
        live.gone.send_replace(true);
    }
}

const POWERED_OFF: Verdict = Verdict { exit_code: 0, reason: "the guest powered off" };
const PANICKED: Verdict = Verdict { exit_code: 1, reason: "the guest's kernel panicked" };
const BROKEN: Verdict = Verdict { exit_code: 1, reason: "the guest cannot be run any further" };

/// Returns the guest's end that an event reports. Ends of QEMU itself (quit, a signal) report none.
fn judge(event: &Event) -> Option<Verdict> {
    let text = |key: &str| event.data.get(key).and_then(Value::as_str);
    match event.name.as_str() {
        "SHUTDOWN" if text("reason").is_none_or(|reason| reason.starts_with("guest-")) => {
            Some(POWERED_OFF)
        }
        "GUEST_PANICKED" if text("action") != Some("run") => Some(PANICKED),
        _ => None,
    }
}

async fn killed_for_memory(process: Process) -> bool {
    let asked = tokio::task::spawn_blocking(move || oom::was_killed(process));
    asked.await.unwrap_or_default()
}

fn code(status: ExitStatus) -> Option<i64> {
    let signal = status.signal().map(|signal| 128 + i64::from(signal));
    signal.or(status.code().map(i64::from))
}

fn describe(status: ExitStatus) -> String {
    match status.signal() {
        Some(9) => "its QEMU was killed".to_owned(),
        Some(_) | None => format!("its QEMU ended: {status}"),
    }
}

/// QEMU's errors, as the reasons of ours.
pub fn reason(error: &QmpError) -> String {
    match error {
        QmpError::Refused { reason, .. } => reason.clone(),
        QmpError::Socket(_) | QmpError::Nonsense(_) | QmpError::Silent | QmpError::Gone => {
            error.to_string()
        }
    }
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("process", &self.process).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, data: Value) -> Option<Verdict> {
        judge(&Event { name: name.to_owned(), data })
    }

    #[test]
    fn only_the_guests_own_end_is_one() {
        let off = json!({"guest": true, "reason": "guest-shutdown"});
        assert_eq!(event("SHUTDOWN", off), Some(POWERED_OFF));
        assert_eq!(event("SHUTDOWN", json!({"reason": "host-qmp-quit"})), None);
        assert_eq!(event("SHUTDOWN", json!({"reason": "host-signal"})), None);
        assert_eq!(event("GUEST_PANICKED", json!({"action": "pause"})), Some(PANICKED));
        assert_eq!(event("RESET", json!({"guest": true})), None);
    }
}
