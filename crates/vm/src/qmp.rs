//! Speaking to a running QEMU: commands, answers, and what it tells by itself.
//!
//! ```text
//!  connect --greeting--> qmp_capabilities --> ready: execute()* , events
//!     the socket ends (QEMU is gone) --> every waiting command fails, events end
//! ```
//!
//! One task reads: answers go to who asked by their id, events to everybody who listens. The
//! protocol is QEMU's own (docs/interop/qmp-spec in its source): one JSON object a line.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, oneshot};
use tokio::time::timeout;

/// The longest line taken; the longest of QEMU's own is its schema, 120 KB.
const MAX_LINE: u64 = 1 << 20;
/// Nothing that is asked here takes QEMU longer unless it hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Events that a listener may be behind; it looks at the state itself when it lost some.
const EVENTS: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    #[error("QEMU cannot be spoken to")]
    Socket(#[from] io::Error),
    #[error("what QEMU said is not QMP")]
    Nonsense(#[from] serde_json::Error),
    #[error("QEMU does not answer")]
    Silent,
    #[error("QEMU is gone")]
    Gone,
    #[error("QEMU would not do {command}: {reason}")]
    Refused { command: &'static str, reason: String },
}

/// Something QEMU told by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub name: String,
    pub data: Value,
}

/// One line of QEMU's.
#[derive(Debug, PartialEq)]
pub enum Said {
    Greeting,
    Event(Event),
    Answer { id: Option<u64>, outcome: Result<Value, String> },
}

/// A connection to one QEMU. It ends with the last of its clones, and with QEMU.
#[derive(Clone, Debug)]
pub struct Qmp {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    next: AtomicU64,
    waiting: Waiting,
    /// Whoever reads from QEMU has the only strong one: its end is the end of the events.
    events: broadcast::WeakSender<Event>,
    reader: tokio::task::AbortHandle,
}

/// `None`: QEMU is gone.
type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Result<Value, String>>>>>>;

impl Drop for Shared {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Qmp {
    /// Connects to the socket `name` in `dir`, waiting for it to appear.
    ///
    /// # Errors
    /// There is no such socket within `limit`, or what answers is not QEMU.
    pub async fn connect(dir: &Path, name: &str, limit: Duration) -> Result<Self, QmpError> {
        let stream = timeout(limit, connect_when_there(dir, name)).await;
        let stream = stream.map_err(|_| QmpError::Silent)??;
        timeout(ANSWER_LIMIT, Self::greet(stream)).await.map_err(|_| QmpError::Silent)?
    }

    async fn greet(stream: UnixStream) -> Result<Self, QmpError> {
        let (read, writer) = stream.into_split();
        let mut reader = BufReader::new(read);
        while next(&mut reader).await? != Some(Said::Greeting) {}
        let (events, first) = broadcast::channel(EVENTS);
        drop(first);
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let weak = events.downgrade();
        let reading = tokio::spawn(read_on(reader, Arc::clone(&waiting), events));
        let writer = tokio::sync::Mutex::new(writer);
        let reader = reading.abort_handle();
        let shared = Shared { writer, next: AtomicU64::new(1), waiting, events: weak, reader };
        let this = Self { shared: Arc::new(shared) };
        this.execute("qmp_capabilities", json!({})).await?;
        Ok(this)
    }

    /// Has QEMU do something, and gives what it returned.
    ///
    /// # Errors
    /// QEMU refuses, does not answer within ten seconds, or is gone.
    pub async fn execute(
        &self,
        command: &'static str,
        arguments: Value,
    ) -> Result<Value, QmpError> {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        match lock(&self.shared.waiting).as_mut() {
            Some(waiting) => drop(waiting.insert(id, sender)),
            None => return Err(QmpError::Gone),
        }
        let mut line = serde_json::to_vec(&json!({
            "execute": command, "arguments": arguments, "id": id,
        }))?;
        line.push(b'\n');
        let asked = async {
            self.shared.writer.lock().await.write_all(&line).await.map_err(|_| QmpError::Gone)?;
            match answer.await {
                Ok(outcome) => outcome.map_err(|reason| QmpError::Refused { command, reason }),
                Err(_) => Err(QmpError::Gone),
            }
        };
        let outcome = timeout(ANSWER_LIMIT, asked).await.unwrap_or(Err(QmpError::Silent));
        if let Some(waiting) = lock(&self.shared.waiting).as_mut() {
            waiting.remove(&id);
        }
        outcome
    }

    /// What QEMU tells from now on; it ends when QEMU is gone.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        match self.shared.events.upgrade() {
            Some(events) => events.subscribe(),
            None => broadcast::channel(1).1,
        }
    }

    pub fn is_gone(&self) -> bool {
        lock(&self.shared.waiting).is_none()
    }
}

/// Connects to a socket of QEMU's that may not be there yet.
///
/// The directory is QEMU's to write, so nothing in it is trusted: no link is followed, and only a
/// socket is connected to, through the descriptor of what was looked at.
///
/// # Errors
/// What has the name is no socket, or cannot be connected to.
pub async fn connect_when_there(dir: &Path, name: &str) -> io::Result<UnixStream> {
    loop {
        match connect(dir, name).await {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            other => return other,
        }
    }
}

async fn connect(dir: &Path, name: &str) -> io::Result<UnixStream> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_PATH;
    let dir = open(dir, flags | OFlag::O_DIRECTORY, Mode::empty())?;
    let socket = openat(&dir, name, flags, Mode::empty())?;
    let kind = SFlag::from_bits_truncate(fstat(&socket)?.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFSOCK {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is no socket")));
    }
    UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
}

async fn read_on(
    mut reader: BufReader<OwnedReadHalf>,
    waiting: Waiting,
    events: broadcast::Sender<Event>,
) {
    loop {
        match next(&mut reader).await {
            Ok(Some(Said::Event(event))) => drop(events.send(event)),
            Ok(Some(Said::Answer { id: Some(id), outcome })) => {
                let asker = lock(&waiting).as_mut().and_then(|waiting| waiting.remove(&id));
                // Who asked may have given up.
                let _ = asker.map(|asker| asker.send(outcome));
            }
            Ok(Some(Said::Answer { id: None, .. } | Said::Greeting)) => {}
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(%error, "the connection to a QEMU broke");
                break;
            }
        }
    }
    lock(&waiting).take();
}

async fn next(reader: &mut BufReader<OwnedReadHalf>) -> Result<Option<Said>, QmpError> {
    let mut line = Vec::new();
    if (&mut *reader).take(MAX_LINE).read_until(b'\n', &mut line).await? == 0 {
        return Ok(None);
    }
    Ok(Some(parse(&line)?))
}

/// Reads one line of QEMU's.
///
/// # Errors
/// It is not JSON of the kind that QEMU says.
pub fn parse(line: &[u8]) -> Result<Said, serde_json::Error> {
    #[derive(Deserialize)]
    struct Failure {
        #[serde(default)]
        desc: String,
    }
    #[derive(Deserialize)]
    struct Line {
        event: Option<String>,
        #[serde(default)]
        data: Value,
        id: Option<u64>,
        #[serde(rename = "return")]
        result: Option<Value>,
        error: Option<Failure>,
        #[serde(rename = "QMP")]
        greeting: Option<Value>,
    }
    let line: Line = serde_json::from_slice(line)?;
    Ok(if line.greeting.is_some() {
        Said::Greeting
    } else if let Some(name) = line.event {
        Said::Event(Event { name, data: line.data })
    } else {
        let outcome = match line.error {
            Some(failure) => Err(failure.desc),
            None => Ok(line.result.unwrap_or_default()),
        };
        Said::Answer { id: line.id, outcome }
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    const GREETING: &[u8] = b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";

    /// A QEMU of words: answers commands with what `answer` makes of them.
    fn qemu(dir: &Path, answer: impl Fn(&Value) -> Vec<Value> + Send + 'static) {
        let listener = UnixListener::bind(dir.join("qmp.sock")).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (read, mut write) = stream.into_split();
            write.write_all(GREETING).await.unwrap();
            let mut lines = BufReader::new(read).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let command: Value = serde_json::from_str(&line).unwrap();
                if command["execute"] == "quit" {
                    return;
                }
                for said in answer(&command) {
                    write.write_all(format!("{said}\r\n").as_bytes()).await.unwrap();
                }
            }
        });
    }

    #[tokio::test]
    async fn answers_find_their_question_among_events() {
        let dir = tempfile::tempdir().unwrap();
        qemu(dir.path(), |command| {
            let event = json!({"event": "RTC_CHANGE", "data": {"n": command["id"]}});
            let answer = if command["execute"] == "no" {
                json!({"id": command["id"], "error": {"class": "GenericError", "desc": "never"}})
            } else {
                json!({"id": command["id"], "return": {"x": command["arguments"]}})
            };
            vec![json!({"return": {}, "id": 77}), event, answer]
        });
        let qmp = Qmp::connect(dir.path(), "qmp.sock", Duration::from_secs(5)).await.unwrap();
        let mut events = qmp.events();
        let answer = qmp.execute("yes", json!({"a": 1})).await.unwrap();
        assert_eq!(answer, json!({"x": {"a": 1}}));
        assert_eq!(events.recv().await.unwrap().name, "RTC_CHANGE");
        let refused = qmp.execute("no", json!({})).await.unwrap_err();
        assert_eq!(refused.to_string(), "QEMU would not do no: never");
    }

    #[tokio::test]
    async fn a_qemu_that_goes_fails_who_waits_and_ends_the_events() {
        let dir = tempfile::tempdir().unwrap();
        qemu(dir.path(), |command| vec![json!({"id": command["id"], "return": {}})]);
        let qmp = Qmp::connect(dir.path(), "qmp.sock", Duration::from_secs(5)).await.unwrap();
        assert!(!qmp.is_gone());
        let mut events = qmp.events();
        assert!(matches!(qmp.execute("quit", json!({})).await, Err(QmpError::Gone)));
        assert!(qmp.is_gone());
        assert!(matches!(events.recv().await, Err(broadcast::error::RecvError::Closed)));
        assert!(qmp.events().recv().await.is_err());
        assert!(matches!(qmp.execute("query-status", json!({})).await, Err(QmpError::Gone)));
    }

    #[tokio::test]
    async fn a_link_in_qemus_directory_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        qemu(dir.path(), |_| Vec::new());
        std::os::unix::fs::symlink("qmp.sock", dir.path().join("other.sock")).unwrap();
        let refused = connect(dir.path(), "other.sock").await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        connect(dir.path(), "qmp.sock").await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_never_comes_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let outcome = Qmp::connect(dir.path(), "qmp.sock", Duration::from_secs(1)).await;
        assert!(matches!(outcome, Err(QmpError::Silent)));
    }
}
