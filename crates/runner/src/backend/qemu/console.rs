//! A machine's serial console: many may watch and type, and its last words are kept.
//!
//! ```text
//!  QEMU ──console.sock──> broker ──> everybody attached      typing goes back the same way
//!     └────run/console.log (QEMU writes it, also while no runner is there; bounded by the broker)
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use kohakuriver_agent_protocol::exec::{ExecExit, ExecFailed, ExecInput, ExecOutput};
use kohakuriver_agent_protocol::{FrameReader, finish, write};
use kohakuriver_vm::command::{CONSOLE_LOG, CONSOLE_SOCKET, RUN_DIR};
use kohakuriver_vm::qmp::connect_when_there;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::timeout;

/// The log is cut when it is longer; its last part is kept under another name.
const MOST_LOG: u64 = 4 << 20;
const KEPT_LOG: u64 = 1 << 20;
const OLD_LOG: &str = "console.old.log";
/// The bytes of earlier output that a new client sees.
const BACKLOG: u64 = 16 << 10;
const LAST_LINES: usize = 12;
const TYPE_LIMIT: Duration = Duration::from_secs(2);
const START_DEADLINE: Duration = Duration::from_secs(10);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Pieces by which a slow client may be behind before it misses some.
const PIECES: usize = 256;

/// The console of one running machine.
#[derive(Debug)]
pub struct Console {
    dir: PathBuf,
    said: broadcast::Sender<Bytes>,
    typed: tokio::sync::Mutex<OwnedWriteHalf>,
    reading: tokio::task::AbortHandle,
}

impl Drop for Console {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Console {
    /// Takes the console of the QEMU in `dir`.
    pub async fn connect(dir: &Path) -> io::Result<Self> {
        let run = dir.join(RUN_DIR);
        let stream = timeout(CONNECT_LIMIT, connect_when_there(&run, CONSOLE_SOCKET)).await;
        let stream = stream.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let (read, typed) = stream.into_split();
        let (said, _) = broadcast::channel(PIECES);
        let reading = tokio::spawn(listen(read, said.clone(), dir.to_owned()));
        Ok(Self {
            dir: dir.to_owned(),
            said,
            typed: tokio::sync::Mutex::new(typed),
            reading: reading.abort_handle(),
        })
    }

    /// Serves one person on the stream, who speaks the exec protocol: what they would run does
    /// not matter, the console is all there is.
    pub async fn serve(&self, stream: UnixStream) {
        let (read, mut writer) = stream.into_split();
        let mut reader = FrameReader::<_, ExecInput>::new(read, &[]);
        let Ok(Ok(Some(ExecInput::Start(_)))) = timeout(START_DEADLINE, reader.next()).await else {
            return;
        };
        let mut said = self.said.subscribe();
        let before = tail(&self.dir, BACKLOG);
        if write(&mut writer, &ExecOutput::Stdout(before.into())).await.is_err() {
            return;
        }
        loop {
            tokio::select! {
                piece = said.recv() => match piece {
                    Ok(piece) => {
                        if write(&mut writer, &ExecOutput::Stdout(piece)).await.is_err() {
                            return;
                        }
                    }
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => break,
                },
                message = reader.next() => match message {
                    Ok(Some(ExecInput::Stdin(data))) => {
                        // A guest that takes nothing must not keep others from typing.
                        let typing = async { self.typed.lock().await.write_all(&data).await };
                        if matches!(timeout(TYPE_LIMIT, typing).await, Ok(Err(_))) {
                            break;
                        }
                        let taken = u32::try_from(data.len()).unwrap_or(u32::MAX);
                        let _ = write(&mut writer, &ExecOutput::StdinTaken(taken)).await;
                    }
                    // A serial line knows no size, no signals, and no end.
                    Ok(Some(
                        ExecInput::Start(_)
                        | ExecInput::StdinEnd
                        | ExecInput::Signal(_)
                        | ExecInput::Resize(_),
                    )) => {}
                    Ok(None) | Err(_) => return,
                },
            }
        }
        finish(&mut reader, &mut writer, &ExecOutput::Exit(ExecExit::Code(0))).await;
    }
}

/// Sends a client the console's last output and the notice that it is closed.
pub async fn refuse(dir: &Path, stream: UnixStream) {
    let (read, mut writer) = stream.into_split();
    let mut reader = FrameReader::<_, ExecInput>::new(read, &[]);
    let before = tail(dir, BACKLOG);
    if !before.is_empty() {
        let _ = write(&mut writer, &ExecOutput::Stdout(before.into())).await;
    }
    let message = "the machine does not run".to_owned();
    finish(&mut reader, &mut writer, &ExecOutput::Failed(ExecFailed { code: 126, message })).await;
}

async fn listen(mut read: OwnedReadHalf, said: broadcast::Sender<Bytes>, dir: PathBuf) {
    let mut length = open_log(&dir).and_then(|log| log.metadata()).map_or(0, |about| about.len());
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = read.read(&mut buffer).await {
        // Nobody may be attached.
        let _ = said.send(Bytes::copy_from_slice(&buffer[..count]));
        length += count as u64;
        if length > MOST_LOG {
            if let Err(error) = cut(&dir) {
                tracing::warn!(%error, "cannot truncate a console's log");
            }
            length = 0;
        }
    }
}

/// QEMU makes the log, so it might be a link to somewhere else.
fn open_log(dir: &Path) -> io::Result<File> {
    let path = dir.join(RUN_DIR).join(CONSOLE_LOG);
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).write(true).custom_flags(flags).open(path)?;
    let about = file.metadata()?;
    if about.is_file() && about.nlink() == 1 {
        Ok(file)
    } else {
        Err(io::ErrorKind::InvalidInput.into())
    }
}

/// QEMU appends to the log, so it may be cut under it.
fn cut(dir: &Path) -> io::Result<()> {
    let mut log = open_log(dir)?;
    fs::write(dir.join(OLD_LOG), last(&mut log, KEPT_LOG)?)?;
    log.set_len(0)
}

fn last(file: &mut File, most: u64) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut text = Vec::new();
    file.by_ref().take(most).read_to_end(&mut text)?;
    Ok(text)
}

/// The console's last bytes.
fn tail(dir: &Path, most: u64) -> Vec<u8> {
    let text = open_log(dir).and_then(|mut log| last(&mut log, most)).unwrap_or_default();
    if !text.is_empty() {
        return text;
    }
    File::open(dir.join(OLD_LOG)).and_then(|mut log| last(&mut log, most)).unwrap_or_default()
}

/// The console's last lines, without what only a terminal understands.
pub fn last_lines(dir: &Path) -> String {
    plain(&tail(dir, 4 << 10))
}

fn plain(said: &[u8]) -> String {
    let mut bytes = said.iter().copied().peekable();
    let mut kept = Vec::new();
    while let Some(byte) = bytes.next() {
        match byte {
            // A control sequence ends with a letter or such.
            0x1b if bytes.next_if_eq(&b'[').is_some() => {
                while bytes.next_if(|byte| (0x20..0x40).contains(byte)).is_some() {}
                bytes.next();
            }
            0x1b => drop(bytes.next()),
            b'\n' | b'\t' | 0x20.. => kept.push(byte),
            _ => {}
        }
    }
    let text = String::from_utf8_lossy(&kept);
    let lines: Vec<&str> =
        text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_a_terminal_understands_is_left_out() {
        let said = b"\x1b[2J\x1b[1;1Hone\r\n\r\n\x1b[0;32mtwo\x1b[0m\x07\r\n\x1bc";
        assert_eq!(plain(said), "one\ntwo");
        let many: String = (0..50).map(|n| format!("line {n}\n")).collect();
        assert!(plain(many.as_bytes()).starts_with("line 38\n"));
    }

    #[test]
    fn a_log_that_is_cut_keeps_its_last_part() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join(RUN_DIR).join(CONSOLE_LOG);
        fs::create_dir(dir.path().join(RUN_DIR)).unwrap();
        fs::write(&log, vec![b'x'; 2 << 20]).unwrap();
        cut(dir.path()).unwrap();
        assert_eq!(fs::metadata(&log).unwrap().len(), 0);
        assert_eq!(tail(dir.path(), 10), b"xxxxxxxxxx");
        assert_eq!(fs::metadata(dir.path().join(OLD_LOG)).unwrap().len(), KEPT_LOG);

        fs::remove_file(&log).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &log).unwrap();
        assert!(cut(dir.path()).is_err());
        assert_eq!(tail(dir.path(), 10), b"xxxxxxxxxx", "no link is followed");
    }
}
