//! Terminal sessions, which outlive the connections to them.
//!
//! ```text
//!            attach           program ended
//!  (none) ----------> live ------------------> over, gone from the list
//!                     |  ^ clients come, go and come back
//!                     |  |
//!                     +--+ without a client: a named one waits for ever, another for a day,
//!                          one whose client hung up or could not come back is hung up
//! ```
//!
//! What is said on the stream is in [`kohakuriver_agent_protocol::session`].

mod answers;
mod charset;
mod client;
mod live;
mod ring;
mod screen;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kohakuriver_agent_protocol::exec::ExecFailed;
use kohakuriver_agent_protocol::session::{Attach, MAX_NAME, MOST_SESSIONS, SessionInfo};
use tokio::time::sleep;

use crate::launch::{Launcher, failed};
use live::Session;

pub(crate) use client::serve;

/// How long an unnamed session without clients waits for a client to reconnect.
const UNNAMED_WAIT: Duration = Duration::from_secs(24 * 3600);
/// A program that ignores the hang-up is killed.
const HANG_UP_GRACE: Duration = Duration::from_secs(5);

/// The instance's sessions.
pub(crate) struct Sessions {
    launcher: Arc<Launcher>,
    live: Mutex<BTreeMap<String, Arc<Session>>>,
}

impl Sessions {
    pub fn new(launcher: Arc<Launcher>) -> Arc<Self> {
        Arc::new(Self { launcher, live: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Session>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session a client means, made if it has to be; and whether it was.
    fn find_or_start(&self, attach: &Attach) -> Result<(Arc<Session>, bool), ExecFailed> {
        let mut live = self.lock();
        live.retain(|_, session| !session.is_over());
        if let Some(name) = &attach.session {
            check_name(name)?;
            if let Some(session) = live.get(name) {
                return Ok((Arc::clone(session), false));
            }
            if attach.existing {
                return Err(failed(1, format!("there is no session '{name}' any more")));
            }
        }
        if live.len() >= MOST_SESSIONS {
            let why = format!("this VPS has {MOST_SESSIONS} terminal sessions already; end some");
            return Err(failed(1, why));
        }
        let name = attach.session.clone().unwrap_or_else(|| free_number(&live));
        let session = Session::start(&self.launcher, name.clone(), attach)?;
        live.insert(name, Arc::clone(&session));
        Ok((session, true))
    }

    fn list(&self) -> Vec<SessionInfo> {
        let mut live = self.lock();
        live.retain(|_, session| !session.is_over());
        live.values().map(|session| session.info()).collect()
    }

    fn find(&self, name: &str) -> Option<Arc<Session>> {
        self.lock().get(name).cloned()
    }
}

/// Feeds an emulator; its panics are the fuzzer's to find.
pub(crate) fn show(output: &[u8], size: kohakuriver_agent_protocol::exec::Size) {
    let mut screen = screen::Screen::new(size);
    screen.process(output);
    screen.picture();
}

/// Hangs a session up, and kills what does not mind.
fn end(session: &Arc<Session>) {
    session.hang_up();
    let session = Arc::clone(session);
    tokio::spawn(async move {
        let mut news = session.news();
        let over = async { while !session.is_over() && news.changed().await.is_ok() {} };
        if tokio::time::timeout(HANG_UP_GRACE, over).await.is_err() {
            session.kill();
        }
    });
}

/// Ends the session if no client has reconnected within [`UNNAMED_WAIT`].
fn end_if_forgotten(session: &Arc<Session>) {
    let session = Arc::clone(session);
    tokio::spawn(async move {
        let mut news = session.news();
        let awaited = async {
            // Whoever comes starts the day anew when they go.
            while session.clients() == 0 && !session.is_over() {
                if news.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = awaited => {}
            () = sleep(UNNAMED_WAIT) => end(&session),
        }
    });
}

fn check_name(name: &str) -> Result<(), ExecFailed> {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(plain) {
        let rule = format!("letters, digits, '-', '_' and '.', at most {MAX_NAME} bytes");
        return Err(failed(
            2,
            format!("'{}' is no name for a session: {rule}", name.escape_debug()),
        ));
    }
    Ok(())
}

fn free_number(live: &BTreeMap<String, Arc<Session>>) -> String {
    (1..)
        .map(|number: u32| number.to_string())
        .find(|name| !live.contains_key(name))
        .unwrap_or_default()
}
