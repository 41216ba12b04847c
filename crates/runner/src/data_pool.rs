//! Data connections, dialed ahead and idle until the host opens a stream.
//!
//! ```text
//!  dialling --connected--> idle --StreamOpen--> (a replacement is dialled) relaying --both done--> gone
//!     |--failed--> reported to the host, retried    |--closed--> dialled again
//! ```
//!
//! Idle connections belong to one control session; streams that were opened outlive it.

use std::sync::Arc;
use std::time::Duration;

use kohakuriver_net::{IntoLazyWrite, Socket, relay};
use kohakuriver_runner_link::backoff::Backoff;
use kohakuriver_runner_link::client::{LinkStream, connect_data};
use kohakuriver_runner_link::frame::FrameStream;
use kohakuriver_runner_link::pki::RunnerIdentity;
use kohakuriver_runner_link::protocol::{StreamOpen, StreamOpened};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::clock;
use crate::streams::{MOST_STREAMS, Streams};

/// Enough for a click that opens a terminal and a file list at once.
const IDLE: usize = 2;
/// The most connections that one request of the host may ask for.
const MOST_EXTRA: u32 = 64;

#[derive(Debug)]
pub struct DataPool {
    dialler: Arc<Dialler>,
    extra: Arc<Semaphore>,
    _end: DropGuard,
}

#[derive(Debug)]
struct Dialler {
    streams: Arc<Streams>,
    identity: watch::Receiver<RunnerIdentity>,
    failures: mpsc::Sender<String>,
    end: CancellationToken,
}

impl DataPool {
    pub fn start(
        streams: Arc<Streams>,
        identity: watch::Receiver<RunnerIdentity>,
        failures: mpsc::Sender<String>,
    ) -> Self {
        let end = CancellationToken::new();
        let dialler = Arc::new(Dialler { streams, identity, failures, end: end.clone() });
        for _ in 0..IDLE {
            let dialler = Arc::clone(&dialler);
            tokio::spawn(async move { dialler.keep_one_idle().await });
        }
        let extra = Arc::new(Semaphore::new(MOST_EXTRA as usize));
        Self { dialler, extra, _end: end.drop_guard() }
    }

    /// Dials more at once: the host has nothing idle left.
    pub fn dial(&self, count: u32) {
        for _ in 0..count {
            // The host asks again for what it still lacks.
            let Ok(permit) = Arc::clone(&self.extra).try_acquire_owned() else {
                return;
            };
            let dialler = Arc::clone(&self.dialler);
            tokio::spawn(async move {
                let _permit = permit;
                if let Ok(taken) = dialler.dial_and_wait().await {
                    dialler.open(taken);
                }
            });
        }
    }
}

type Taken = (FrameStream<LinkStream>, StreamOpen);

/// The connection failed.
struct Lost;

impl Dialler {
    async fn keep_one_idle(&self) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        while !self.end.is_cancelled() {
            match self.dial_and_wait().await {
                Ok(taken) => {
                    backoff.reset();
                    self.open(taken);
                }
                Err(Lost) => {
                    let wait = backoff.next(clock::jitter());
                    let _ = tokio::time::timeout(wait, self.end.cancelled()).await;
                }
            }
        }
    }

    async fn dial_and_wait(&self) -> Result<Taken, Lost> {
        let work = async {
            let identity = self.identity.borrow().clone();
            let stream = match connect_data(&identity).await {
                Ok(stream) => stream,
                Err(error) => {
                    // With a full queue, enough failures are being reported already.
                    let _ = self.failures.try_send(error.to_string());
                    return Err(Lost);
                }
            };
            let mut frames = FrameStream::small(stream);
            match frames.receive::<StreamOpen>().await {
                Ok(open) => Ok((frames, open)),
                Err(error) => {
                    tracing::debug!(%error, "an idle data connection ended");
                    Err(Lost)
                }
            }
        };
        tokio::select! {
            taken = work => taken,
            () = self.end.cancelled() => Err(Lost),
        }
    }

    fn open(&self, (frames, open): Taken) {
        let streams = Arc::clone(&self.streams);
        tokio::spawn(async move { serve(streams, frames, open).await });
    }
}

/// Connects one stream to the instance and copies until both sides are done.
async fn serve(streams: Arc<Streams>, mut frames: FrameStream<LinkStream>, open: StreamOpen) {
    let Some(_permit) = streams.try_acquire() else {
        let error = format!("the node already has {MOST_STREAMS} open streams, its limit");
        let _ = frames.send(&StreamOpened::refused(error)).await;
        return;
    };
    let agent = match streams.open(&open).await {
        Ok(agent) => agent,
        Err(error) => {
            let _ = frames.send(&StreamOpened::refused(error.to_string())).await;
            return;
        }
    };
    if let Err(error) = join(frames, agent).await {
        tracing::debug!(task.id = %open.task_id, %error, "a stream broke");
    }
}

async fn join(mut frames: FrameStream<LinkStream>, mut agent: Socket) -> std::io::Result<()> {
    frames.send(&StreamOpened::Opened).await.map_err(std::io::Error::other)?;
    let (link, early) = frames.into_parts();
    agent.write_all(&early).await?;
    relay(link, agent.into_lazy_write()?).await.map(drop)
}
