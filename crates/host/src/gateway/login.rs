//! The login deadline of gateway connections.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::config::Deadlines;

/// The login stage of one connection. Clones share it.
#[derive(Clone, Debug)]
pub struct Login {
    accepted: Instant,
    deadlines: Deadlines,
    stage: Arc<watch::Sender<Stage>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Unauthenticated,
    /// The client has offered a public key of an account; its signature is not checked yet.
    KeyOffered,
    Done,
}

impl Login {
    /// Starts the deadline now.
    pub fn new(deadlines: Deadlines) -> Self {
        let stage = Arc::new(watch::Sender::new(Stage::Unauthenticated));
        Self { accepted: Instant::now(), deadlines, stage }
    }

    pub fn key_offered(&self) {
        self.advance(Stage::KeyOffered);
    }

    pub fn done(&self) {
        self.advance(Stage::Done);
    }

    fn advance(&self, stage: Stage) {
        self.stage.send_if_modified(|now| {
            let advanced = stage > *now;
            *now = stage.max(*now);
            advanced
        });
    }

    /// Waits until the deadline has passed. Never returns once the login is done.
    pub async fn overdue(&self) {
        let mut stage = self.stage.subscribe();
        loop {
            let now = *stage.borrow_and_update();
            let limit = match now {
                Stage::Unauthenticated => self.deadlines.ssh_login,
                Stage::KeyOffered => self.deadlines.ssh_passphrase,
                Stage::Done => return std::future::pending().await,
            };
            tokio::select! {
                () = sleep_until(self.accepted + limit) => return,
                // The sender is this value's own, so there is no error.
                _ = stage.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn login_deadline_counts_from_accept_and_ends_with_the_login() {
        let deadlines = Deadlines::default();
        let login = Login::new(deadlines);
        tokio::time::sleep(deadlines.ssh_login - Duration::from_secs(1)).await;
        assert!(timeout(Duration::from_millis(900), login.overdue()).await.is_err());
        login.key_offered();
        assert!(timeout(Duration::from_secs(60), login.overdue()).await.is_err());
        timeout(deadlines.ssh_passphrase, login.overdue()).await.unwrap();
        assert_eq!(login.accepted.elapsed(), deadlines.ssh_passphrase);
        login.done();
        login.key_offered();
        assert!(timeout(Duration::from_secs(9999), login.overdue()).await.is_err());
    }
}
