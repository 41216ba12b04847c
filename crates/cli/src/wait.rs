//! Waiting until a VPS is what it was asked to be.
//!
//! The host holds each question open until something changed, so news arrive at once and waiting
//! costs nothing. A lost connection is tried again for a while: the work goes on without us.

use std::future::Future;
use std::time::{Duration, Instant};

use kohakuriver_api::Task;

use crate::context::Context;
use crate::error::{CommandError, Kind};
use crate::stdout;
use crate::ui::Progress;

/// How long the host may be away before waiting is given up.
const PATIENCE: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A host that answers an open question at once with nothing new is not asked faster than this.
const SLOWEST_ANSWER: Duration = Duration::from_millis(500);

/// Where waiting ended.
#[derive(Debug)]
pub enum End {
    /// The caller's condition holds for this state.
    Met(Box<Task>),
    /// The VPS does not exist any more.
    Gone,
}

/// Follows a VPS until `done` holds. `step` names what to show where the host reports no progress.
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

/// What happens to one VPS, look by look.
#[derive(Debug)]
pub struct News {
    id: String,
    /// The revision seen last.
    since: Option<u64>,
    retries: RetryBudget,
}

impl News {
    pub fn of(id: &str, since: Option<u64>) -> Self {
        Self { id: id.to_owned(), since, retries: RetryBudget::default() }
    }

    /// Its next state, or the same one after a while; None where it does not exist any more.
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

/// How much longer a host that does not answer is asked again.
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
    /// Pauses, or hands back a failure that asking again does not cure. `asked` is when the
    /// question was put.
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
        progress.show("the host does not answer, trying again", None);
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

/// Whether something outside a VPS keeps it from being what was asked, such as an engine that is
/// away. Its node goes on trying.
pub fn is_blocked(task: &Task) -> bool {
    task.transition.is_some() && task.error_code.is_some()
}

/// Runs `work`, or fails with what `interrupted` says when Ctrl-C comes first.
pub async fn unless_interrupted<T>(
    work: impl Future<Output = Result<T, CommandError>>,
    interrupted: impl FnOnce() -> CommandError,
) -> Result<T, CommandError> {
    tokio::select! {
        result = work => result,
        _ = tokio::signal::ctrl_c() => Err(interrupted()),
    }
}

/// Runs work that only shows something, until Ctrl-C, which is how it ends, or until the reader of
/// standard output has gone.
pub async fn watching(
    work: impl Future<Output = Result<(), CommandError>>,
) -> Result<(), CommandError> {
    tokio::select! {
        result = work => result,
        _ = tokio::signal::ctrl_c() => Ok(()),
        gone = stdout::reader_gone() => Err(gone),
    }
}
