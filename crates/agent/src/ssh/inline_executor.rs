//! Work that may block, done by the thread that drives the connection.
//!
//! ```text
//!  connection's thread   driving --work comes--> working --done--> driving ... --connection over--> gone
//!  relief                asleep --work--> watching --the same work for PATIENCE--> driving --done--> watching
//!                           ^----------------nothing new for QUIET----------------/
//! ```
//!
//! A transfer of small files is a row of round trips, each with some microseconds of file system in it. To hand those
//! to another process or thread, and to be woken by it again, costs several times the work. So each connection has a
//! thread with a runtime of its own, as OpenSSH's have a process, which stops driving while it works. Where that takes
//! long (a slow disk, a FUSE or NFS server that is gone) another thread drives meanwhile: the connection's other
//! channels wait for [`PATIENCE`] twice at most, and other connections never.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// How often the relief looks while there is work. Shorter costs wake-ups during every transfer.
const PATIENCE: Duration = Duration::from_millis(20);
/// So many looks without new work, and the relief sleeps until there is some.
const QUIET: u32 = 10;
/// Logging in takes most; only what is used of it is memory.
const STACK: usize = 1024 * 1024;

/// A way to have work done by the connection's thread.
#[derive(Debug)]
pub(super) struct InlineExecutor {
    works: mpsc::Sender<Box<dyn Work>>,
    /// Of this connection.
    free: Arc<Semaphore>,
    /// Of the agent.
    room: Arc<Semaphore>,
}

/// The right to it, which one channel of the connection has at a time: stuck work holds up what comes after it.
#[derive(Debug)]
pub(super) struct Worker {
    works: mpsc::Sender<Box<dyn Work>>,
    taken: Arc<[OwnedSemaphorePermit; 2]>,
}

impl InlineExecutor {
    pub fn take(&self) -> Option<Worker> {
        let take = |permits: &Arc<Semaphore>| Arc::clone(permits).try_acquire_owned().ok();
        let taken = [take(&self.free)?, take(&self.room)?];
        Some(Worker { works: self.works.clone(), taken: Arc::new(taken) })
    }
}

impl Worker {
    /// Has it done; none if the connection is over.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (tell, told) = oneshot::channel();
        let taken = Arc::clone(&self.taken);
        let one = One { work: Some(work), result: None, tell: Some(tell), _taken: taken };
        self.works.send(Box::new(one)).await.ok()?;
        told.await.ok()
    }
}

trait Work: Send {
    fn work(&mut self);
    /// Inside the runtime again, which so needs no system call to be woken.
    fn tell(&mut self);
}

struct One<F, T> {
    work: Option<F>,
    result: Option<T>,
    tell: Option<oneshot::Sender<T>>,
    /// Held until the work ends, even if its caller no longer waits.
    _taken: Arc<[OwnedSemaphorePermit; 2]>,
}

impl<F: FnOnce() -> T + Send, T: Send> Work for One<F, T> {
    fn work(&mut self) {
        let result = self.work.take().map(|work| work());
        // What nobody waits for is dropped here: to drop a file may take long too.
        self.result = result.filter(|_| self.tell.as_ref().is_some_and(|tell| !tell.is_closed()));
    }

    fn tell(&mut self) {
        if let (Some(result), Some(tell)) = (self.result.take(), self.tell.take()) {
            let _ = tell.send(result);
        }
    }
}

/// Starts a thread that drives a connection until it is over. `held` is let go when all of the connection is gone;
/// `room` is shared by all connections whose thread may be asked to work.
pub(super) fn spawn<F, C, H>(connection: C, room: Arc<Semaphore>, held: H) -> io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
    C: FnOnce(InlineExecutor) -> F + Send + 'static,
    H: Send + 'static,
{
    // The runtime is made in there: where there is no room for the thread it would be dropped in the caller's, which
    // panics.
    thread::Builder::new().name("ssh".to_owned()).stack_size(STACK).spawn(move || {
        // Nothing of ours uses the blocking threads.
        match Builder::new_current_thread().enable_all().max_blocking_threads(1).build() {
            Ok(runtime) => drive(&Arc::new(runtime), connection, room),
            Err(error) => tracing::warn!(%error, "SSH connection refused: no runtime for it"),
        }
        drop(held);
    })?;
    Ok(())
}

fn drive<F, C>(runtime: &Arc<Runtime>, connection: C, room: Arc<Semaphore>)
where
    F: Future<Output = ()> + Send + 'static,
    C: FnOnce(InlineExecutor) -> F,
{
    let (sender, mut works) = mpsc::channel::<Box<dyn Work>>(1);
    let in_place = InlineExecutor { works: sender, free: Arc::new(Semaphore::new(1)), room };
    let mut connection = runtime.spawn(connection(in_place));
    let mut relief = None;
    let mut done: Option<Box<dyn Work>> = None;
    loop {
        let next = runtime.block_on(async {
            if let Some(mut done) = done.take() {
                done.tell();
            }
            tokio::select! {
                Some(work) = works.recv() => Some(work),
                // A panic inside ends this connection alone.
                _ = &mut connection => None,
            }
        });
        let Some(mut work) = next else {
            return;
        };
        if relief.is_none() {
            relief = BackupDriver::start(Arc::clone(runtime))
                .inspect_err(
                    |error| tracing::warn!(%error, "a stuck file would hold up its connection"),
                )
                .ok();
        }
        match &relief {
            Some(relief) => relief.stand_by(|| work.work()),
            None => work.work(),
        }
        done = Some(work);
    }
}

/// The thread that drives while the connection's own is stuck. Dropping this ends it.
struct BackupDriver {
    watched: Arc<Watched>,
    thread: thread::Thread,
}

#[derive(Debug, Default)]
struct Watched {
    /// Odd while work is being done.
    turn: AtomicU64,
    turned: Notify,
    asleep: AtomicBool,
    over: AtomicBool,
}

impl BackupDriver {
    fn start(runtime: Arc<Runtime>) -> io::Result<Self> {
        let watched = Arc::new(Watched::default());
        let mine = Arc::clone(&watched);
        let thread = thread::Builder::new()
            .name("ssh-relief".to_owned())
            .stack_size(STACK)
            .spawn(move || mine.watch(&runtime))?;
        Ok(Self { watched, thread: thread.thread().clone() })
    }

    fn stand_by(&self, work: impl FnOnce()) {
        let watched = &self.watched;
        watched.turn.fetch_add(1, Ordering::SeqCst);
        if watched.asleep.swap(false, Ordering::SeqCst) {
            self.thread.unpark();
        }
        let _turning = Turning(watched);
        work();
    }
}

impl Drop for BackupDriver {
    fn drop(&mut self) {
        self.watched.over.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

/// Ends the turn however the work ends.
struct Turning<'a>(&'a Watched);

impl Drop for Turning<'_> {
    fn drop(&mut self) {
        self.0.turn.fetch_add(1, Ordering::SeqCst);
        self.0.turned.notify_waiters();
    }
}

impl Watched {
    fn watch(&self, runtime: &Runtime) {
        let mut seen = self.turn.load(Ordering::SeqCst);
        let mut into_lazy_write = 0;
        while !self.over.load(Ordering::SeqCst) {
            if into_lazy_write < QUIET {
                thread::park_timeout(PATIENCE);
            } else {
                self.asleep.store(true, Ordering::SeqCst);
                // Work that has come since the last look saw nobody asleep.
                if self.turn.load(Ordering::SeqCst) == seen {
                    thread::park();
                }
                self.asleep.store(false, Ordering::SeqCst);
            }
            let now = self.turn.load(Ordering::SeqCst);
            if now != seen {
                into_lazy_write = 0;
            } else if now % 2 == 1 {
                runtime.block_on(self.until_turned(now));
                into_lazy_write = 0;
            } else {
                into_lazy_write += 1;
            }
            seen = self.turn.load(Ordering::SeqCst);
        }
    }

    async fn until_turned(&self, turn: u64) {
        let turned = self.turned.notified();
        if self.turn.load(Ordering::SeqCst) == turn {
            turned.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as blocking;
    use std::thread::ThreadId;

    use super::*;

    /// Drives `connection` by a thread of its own; false when that takes longer than any machine needs.
    fn ends<F, C>(connection: C) -> bool
    where
        F: Future<Output = ()> + Send + 'static,
        C: FnOnce(InlineExecutor) -> F + Send + 'static,
    {
        let held = Arc::new(Semaphore::new(1));
        let slot = Arc::clone(&held).try_acquire_owned().unwrap();
        spawn(connection, Arc::new(Semaphore::new(1)), slot).unwrap();
        (0..1000).any(|_| {
            thread::sleep(Duration::from_millis(10));
            held.available_permits() == 1
        })
    }

    #[test]
    fn work_is_done_by_the_thread_that_drives_and_its_result_comes_back() {
        assert!(ends(|in_place| async move {
            let here = thread::current().id();
            let worker = in_place.take().unwrap();
            let done: Option<(ThreadId, u32)> = worker.run(|| (thread::current().id(), 7)).await;
            assert_eq!(done, Some((here, 7)));
        }));
    }

    #[test]
    fn while_work_is_stuck_the_rest_of_the_connection_goes_on_and_then_its_own_thread_again() {
        assert!(ends(|in_place| async move {
            let worker = in_place.take().unwrap();
            let here = thread::current().id();
            for _ in 0..3 {
                let (free, stuck) = blocking::channel::<()>();
                let other = tokio::spawn(async move {
                    // More than one turn of the runtime, with its timers.
                    for _ in 0..20 {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    assert_ne!(thread::current().id(), here);
                    free.send(()).unwrap();
                });
                assert_eq!(worker.run(move || stuck.recv()).await, Some(Ok(())));
                other.await.unwrap();
            }
        }));
    }

    #[test]
    fn one_channel_has_it_at_a_time_and_stuck_work_keeps_it() {
        assert!(ends(|in_place| async move {
            let (free, stuck) = blocking::channel::<()>();
            let worker = in_place.take().unwrap();
            assert!(in_place.take().is_none());
            let given_up = tokio::spawn(async move { worker.run(move || stuck.recv()).await });
            tokio::time::sleep(Duration::from_millis(50)).await;
            given_up.abort();
            assert!(given_up.await.is_err());
            assert!(in_place.take().is_none(), "the work goes on");
            free.send(()).unwrap();
            while in_place.take().is_none() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }));
    }

    #[test]
    fn a_panic_at_work_ends_the_connection() {
        assert!(ends(|in_place| async move {
            in_place.take().unwrap().run(|| panic!("at work")).await.unwrap_or(());
            std::future::pending::<()>().await;
        }));
    }
}
