//! Long work that several instances wait for is done once.
//!
//! ```text
//!  idle --first waiter--> working --done--> idle (result to every waiter)
//!                            |--last waiter gives up--> aborted
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::backend::{BackendError, Progress};

pub type Outcome = Result<String, BackendError>;

#[derive(Clone, Debug)]
enum State {
    Working { step: String, percent: Option<u8> },
    Done(Outcome),
}

/// Where the work tells how far it is.
#[derive(Clone, Debug)]
pub struct Reporter(watch::Sender<State>);

impl Reporter {
    /// Passes every step to a test.
    #[cfg(test)]
    pub fn observed() -> (Self, impl FnMut() -> String) {
        let (sender, receiver) =
            watch::channel(State::Working { step: String::new(), percent: None });
        let step = move || match &*receiver.borrow() {
            State::Working { step, .. } => step.clone(),
            State::Done(_) => String::new(),
        };
        (Self(sender), step)
    }

    pub fn step(&self, step: impl Into<String>, percent: Option<u8>) {
        let step = step.into();
        self.0.send_if_modified(|state| match state {
            State::Working { step: known, percent: known_percent }
                if *known == step && *known_percent == percent =>
            {
                false
            }
            State::Working { .. } | State::Done(_) => {
                *state = State::Working { step, percent };
                true
            }
        });
    }
}

#[derive(Debug, Default)]
pub struct Jobs {
    by_key: Mutex<HashMap<String, Weak<Job>>>,
}

#[derive(Debug)]
struct Job {
    state: watch::Receiver<State>,
    work: JoinHandle<()>,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.work.abort();
    }
}

impl Jobs {
    /// Waits for the work named `key`, starting it unless it is already running.
    pub async fn run<F>(
        &self,
        key: &str,
        progress: Progress<'_>,
        start: impl FnOnce(Reporter) -> F,
    ) -> Outcome
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let job = self.join(key, start);
        let mut state = job.state.clone();
        loop {
            let now = state.borrow_and_update().clone();
            match now {
                State::Done(outcome) => return outcome,
                State::Working { step, percent } if !step.is_empty() => progress(step, percent),
                State::Working { .. } => {}
            }
            if state.changed().await.is_err() {
                return Err(BackendError::ImageUnavailable {
                    what: "preparing the image stopped".to_owned(),
                    reason: "the work ended without a result".to_owned(),
                    hint: "try again; the runner's log has the cause".to_owned(),
                });
            }
        }
    }

    fn join<F>(&self, key: &str, start: impl FnOnce(Reporter) -> F) -> Arc<Job>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        by_key.retain(|_, job| job.strong_count() > 0);
        if let Some(job) = by_key.get(key).and_then(Weak::upgrade)
            && !job.work.is_finished()
        {
            return job;
        }
        let (sender, state) = watch::channel(State::Working { step: String::new(), percent: None });
        let work = start(Reporter(sender.clone()));
        let work = tokio::spawn(async move {
            let outcome = work.await;
            sender.send_replace(State::Done(outcome));
        });
        let job = Arc::new(Job { state, work });
        by_key.insert(key.to_owned(), Arc::downgrade(&job));
        job
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiters_share_one_run_and_the_last_one_to_leave_ends_it() {
        let jobs = Jobs::default();
        let runs = Arc::new(AtomicU32::new(0));
        let ends = Arc::new(AtomicU32::new(0));
        let wait = || {
            let (runs, ends) = (Arc::clone(&runs), Arc::clone(&ends));
            jobs.run("a", &|_, _| {}, move |_| async move {
                runs.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(10)).await;
                ends.fetch_add(1, Ordering::SeqCst);
                Ok("id".to_owned())
            })
        };
        let (one, two) = tokio::join!(wait(), wait());
        assert_eq!((one.unwrap().as_str(), two.unwrap().as_str()), ("id", "id"));
        assert_eq!((runs.load(Ordering::SeqCst), ends.load(Ordering::SeqCst)), (1, 1));

        assert!(tokio::time::timeout(Duration::from_secs(1), wait()).await.is_err());
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!((runs.load(Ordering::SeqCst), ends.load(Ordering::SeqCst)), (2, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn progress_reaches_the_waiters() {
        let jobs = Jobs::default();
        let seen = Mutex::new(Vec::new());
        let progress = |step: String, percent| seen.lock().unwrap().push((step, percent));
        let outcome = jobs
            .run("a", &progress, |reporter| async move {
                reporter.step("pulling", Some(5));
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(String::new())
            })
            .await;
        assert!(outcome.is_ok());
        assert_eq!(*seen.lock().unwrap(), [("pulling".to_owned(), Some(5))]);
    }
}
