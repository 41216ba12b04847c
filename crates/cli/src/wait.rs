//! Waits until a VPS reaches a requested state.
//!
//! The host holds each request until the VPS changes (long polling), so changes arrive at once and
//! waiting is cheap. A lost connection is retried for a while; the work continues without the client.

use std::future::Future;
use std::time::{Duration, Instant};

use kohakuriver_api::Task;

use crate::context::Context;
use crate::error::{CommandError, Kind};
use crate::stdout;
use crate::ui::Progress;

/// Time limit for a host that does not respond.
const PATIENCE: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Minimum interval between requests to a host that responds at once without a change.
const SLOWEST_ANSWER: Duration = Duration::from_millis(500);

/// The outcome of waiting.
#[derive(Debug)]
pub enum End {
    /// The caller's condition holds for this state.
    Met(Box<Task>),
    /// The VPS no longer exists.
    Gone,
}

/// Watches a VPS until `done` holds. `step` is displayed while the host reports no progress.
pub async fn until(
    context: &Context,
    id: &str,
    step: &str,
    done: impl Fn(&Task) -> bool,
) -> Result<End, CommandError> {
    let mut progress = Progress::new(context.out);
    progress.show(step, None);
    let mut news = News::of(id, None);
    loop {
        let Some(task) = news.next(context, &mut progress).await? else {
            return Ok(End::Gone);
        };
        if done(&task) {
            return Ok(End::Met(Box::new(task)));
        }
        progress.show(task.progress.as_deref().unwrap_or(step), task.progress_percent);
    }
}

/// A watch on one VPS, which yields its states.
#[derive(Debug)]
pub struct News {
    id: String,
    /// The revision of the last state.
    since: Option<u64>,
    retries: RetryBudget,
}

impl News {
    pub fn of(id: &str, since: Option<u64>) -> Self {
        Self { id: id.to_owned(), since, retries: RetryBudget::default() }
    }

    /// Returns the next state, or the same one after a while; `None` if the VPS no longer exists.
    pub async fn next(
        &mut self,
        context: &Context,
        progress: &mut Progress,
    ) -> Result<Option<Task>, CommandError> {
        loop {
            let asked = Instant::now();
            let answer = match self.since {
                None => context.api.task(&self.id).await,
                Some(revision) => context.api.task_after(&self.id, revision).await,
            };
            match answer {
                Ok(task) => {
                    self.retries = RetryBudget::default();
                    let stale = self.since.replace(task.revision) == Some(task.revision);
                    if stale && asked.elapsed() < SLOWEST_ANSWER {
                        tokio::time::sleep(SLOWEST_ANSWER).await;
                    }
                    return Ok(Some(task));
                }
                Err(failure) if failure.kind == Kind::NotFound => return Ok(None),
                Err(failure) => self.retries.wait(failure, asked, progress).await?,
            }
        }
    }
}

/// The time left for retries while the host does not respond.
#[derive(Debug)]
pub struct RetryBudget {
    trouble: Option<Instant>,
    pause: Duration,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { trouble: None, pause: FIRST_PAUSE }
    }
}

impl RetryBudget {
    /// Waits before the next attempt, or returns an error that a retry cannot resolve. `asked` is the
    /// time of the failed request.
    pub async fn wait(
        &mut self,
        failure: CommandError,
        asked: Instant,
        progress: &mut Progress,
    ) -> Result<(), CommandError> {
        let first = *self.trouble.get_or_insert(asked);
        if failure.kind != Kind::Unreachable || first.elapsed() >= PATIENCE {
            return Err(failure);
        }
        progress.show("the host does not respond, trying again", None);
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

/// Returns whether an obstacle outside the VPS, such as a stopped engine, blocks the request. Its node
/// keeps trying.
pub fn is_blocked(task: &Task) -> bool {
    task.transition.is_some() && task.error_code.is_some()
}

/// Runs `work`, or fails with the error of `interrupted` if Ctrl-C comes first.
pub async fn unless_interrupted<T>(
    work: impl Future<Output = Result<T, CommandError>>,
    interrupted: impl FnOnce() -> CommandError,
) -> Result<T, CommandError> {
    tokio::select! {
        result = work => result,
        _ = tokio::signal::ctrl_c() => Err(interrupted()),
    }
}

/// Runs work that only displays something, until Ctrl-C, its normal end, or until the reader of
/// standard output has closed.
pub async fn watching(
    work: impl Future<Output = Result<(), CommandError>>,
) -> Result<(), CommandError> {
    tokio::select! {
        result = work => result,
        _ = tokio::signal::ctrl_c() => Ok(()),
        gone = stdout::reader_gone() => Err(gone),
    }
}
