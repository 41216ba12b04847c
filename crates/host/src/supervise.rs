//! Supervises the host's long-lived tasks: a task that panics is logged and restarted.
//!
//! Revoking access, updating keys and writing the audit log are such tasks. If one ended silently,
//! the host would continue without it; so they are spawned only here.

use std::any::Any;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use kohakuriver_runner_link::backoff::Backoff;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const FIRST_WAIT: Duration = Duration::from_millis(50);
/// The longest delay before a restart, so that revocation is never suspended for longer.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// A task that ran this long restarts without a delay again.
const STABLE: Duration = Duration::from_secs(60);

/// Spawns tasks that run until the host stops.
#[derive(Clone, Debug)]
pub struct Supervisor {
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Supervisor {
    pub fn new(tasks: TaskTracker, shutdown: CancellationToken) -> Self {
        Self { tasks, shutdown }
    }

    /// Does the same as [`Self::keep`] for a task that accepts connections: each run has a listener
    /// on the port.
    ///
    /// # Errors
    /// The listener cannot be duplicated.
    pub fn keep_listening<F>(
        &self,
        name: &'static str,
        listener: TcpListener,
        task: impl Fn(TcpListener) -> F + Clone + Send + Sync + 'static,
    ) -> io::Result<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // The port stays open while no run accepts: connections wait in its queue.
        let port = Arc::new(listener.into_std()?);
        self.keep(name, move || {
            let (port, task) = (port.clone(), task.clone());
            async move {
                match port.try_clone().and_then(TcpListener::from_std) {
                    Ok(listener) => task(listener).await,
                    Err(error) => tracing::error!(%error, "listening on a port failed"),
                }
            }
        });
        Ok(())
    }

    /// Runs the task that `task` makes until the shutdown. It is restarted after a panic, and after
    /// an end before the shutdown.
    pub fn keep<F>(&self, name: &'static str, task: impl Fn() -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(keep_running(name, self.shutdown.clone(), task));
    }
}

/// Does the same as [`Supervisor::keep`], for callers that spawn the task themselves.
pub async fn keep_running<F>(name: &'static str, shutdown: CancellationToken, task: impl Fn() -> F)
where
    F: Future<Output = ()>,
{
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    loop {
        let began = Instant::now();
        // Its shared state is behind locks that are recovered after a panic.
        let ended = AssertUnwindSafe(async { task().await }).catch_unwind().await;
        match ended {
            Ok(()) if shutdown.is_cancelled() => return,
            Ok(()) => tracing::error!(task = name, "a task of the host ended; it is started again"),
            Err(panic) => {
                let error = reason(&*panic);
                tracing::error!(
                    task = name,
                    error,
                    "a task of the host panicked; it is started again"
                );
            }
        }
        if began.elapsed() >= STABLE {
            backoff.reset();
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(backoff.next(0.0)) => {}
        }
    }
}

/// Returns the message of a panic.
fn reason(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn panicked_and_ended_tasks_start_again_until_shutdown() {
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let runs = Arc::new(AtomicU32::new(0));
        let (counted, end) = (runs.clone(), shutdown.clone());
        Supervisor::new(tasks.clone(), shutdown).keep("test", move || {
            let (runs, end) = (counted.clone(), end.clone());
            async move {
                match runs.fetch_add(1, Ordering::SeqCst) {
                    0 => panic!("first"),
                    1 => {}
                    2 => panic!("{}", "third"),
                    _ => {
                        end.cancel();
                        end.cancelled().await;
                    }
                }
            }
        });
        tasks.close();
        tasks.wait().await;
        assert_eq!(runs.load(Ordering::SeqCst), 4);
    }

    #[tokio::test]
    async fn panicked_listener_accepts_again_on_its_port() {
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicU32::new(0));
        let (count, end) = (accepted.clone(), shutdown.clone());
        let task = move |listener: TcpListener| {
            let (count, end) = (count.clone(), end.clone());
            async move {
                let _ = listener.accept().await;
                assert_ne!(count.fetch_add(1, Ordering::SeqCst), 0, "the first one is too much");
                end.cancel();
            }
        };
        let supervisor = Supervisor::new(tasks.clone(), shutdown.clone());
        supervisor.keep_listening("test", listener, task).unwrap();
        tasks.close();
        // Until both runs had one, and the port is closed.
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        tasks.wait().await;
        assert_eq!(accepted.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn reason_of_a_panic_is_its_message() {
        assert_eq!(reason(&"text"), "text");
        assert_eq!(reason(&"owned".to_owned()), "owned");
        assert_eq!(reason(&7), "no message");
    }
}
