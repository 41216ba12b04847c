//! A thread with a runtime for a single connection.
//!
//! Messages between a session of the SSH library and its relays then wake no other thread, and the
//! thread can sleep while bytes accumulate.

use std::io;
use std::thread;

use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Only the used part of the stack takes memory.
const STACK: usize = 1024 * 1024;

/// Runs the connection until it ends. Dropping the future ends the connection and all tasks it has
/// started.
pub async fn run<F, C>(connection: C) -> io::Result<()>
where
    F: Future<Output = ()>,
    C: FnOnce() -> F + Send + 'static,
{
    let dropped = CancellationToken::new();
    let _dropping = dropped.clone().drop_guard();
    let (tell, told) = oneshot::channel();
    // The runtime is made inside the thread: if the thread could not be started, it would be
    // dropped in the caller's runtime, which panics.
    thread::Builder::new().name("ssh-jump".to_owned()).stack_size(STACK).spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
        let ran = runtime.map(|runtime| {
            runtime.block_on(async {
                tokio::select! {
                    () = dropped.cancelled() => {}
                    () = connection() => {}
                }
            });
        });
        let _ = tell.send(ran);
    })?;
    // A panic inside sends nothing, and is an end too.
    told.await.unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn thread_is_awaited_and_a_panic_ends_it() {
        let here = thread::current().id();
        run(move || async move { assert_ne!(thread::current().id(), here) }).await.unwrap();
        run(|| async { panic!("inside") }).await.unwrap();
    }

    #[tokio::test]
    async fn dropped_future_ends_the_thread_and_its_tasks() {
        let (alive, gone) = oneshot::channel::<()>();
        let running = run(|| async move {
            tokio::spawn(async move {
                let _alive = alive;
                std::future::pending::<()>().await;
            });
            std::future::pending::<()>().await;
        });
        assert!(tokio::time::timeout(Duration::from_millis(50), running).await.is_err());
        assert!(gone.await.is_err());
    }
}
