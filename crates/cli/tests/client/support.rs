//! A host with canned responses, and a directory to run the client in.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// A request of the client.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// The path without the query.
    pub path: String,
    pub target: String,
    pub body: String,
    /// The headers as sent, names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value)
    }
}

/// A canned response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    pub fn ok(body: Value) -> Self {
        Self { status: 200, body: body.to_string() }
    }

    /// The connection breaks once the request is read.
    pub fn nothing() -> Self {
        Self { status: 0, body: String::new() }
    }

    /// Returns the response to an operation.
    pub fn accepted(id: &str) -> Self {
        Self { status: 202, body: json!({"message": "ok", "task_id": id}).to_string() }
    }

    pub fn not_found() -> Self {
        Self { status: 404, body: error_body("there is no such VPS").to_string() }
    }
}

pub fn error_body(detail: &str) -> Value {
    json!({"detail": detail, "code": "test"})
}

/// Returns a VPS as the API does.
pub fn task(id: &str, name: &str, status: &str, revision: u64) -> Value {
    json!({
        "task_id": id, "task_type": "vps", "name": name, "status": status, "revision": revision,
        "assigned_node": "node1", "ssh_port": 2222, "vps_backend": "docker",
        "required_cores": 4, "required_memory_bytes": 8_u64 << 30,
        "started_at": "2026-01-01T00:00:00+00:00",
    })
}

/// The host, which serves until the test process ends.
#[derive(Debug)]
pub struct Host {
    pub port: u16,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Host {
    pub fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&log), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                std::thread::spawn(move || {
                    if let Some(request) = read(&stream) {
                        let answer = answer(&request);
                        seen.lock().unwrap().push(request);
                        if answer.status != 0 {
                            write(&stream, &answer);
                        }
                    }
                });
            }
        });
        Self { port, log }
    }

    /// Returns whether a request began like this, for example `DELETE /api/vps/7?force=true`.
    pub fn saw(&self, start: &str) -> bool {
        self.find(start).is_some()
    }

    pub fn body(&self, start: &str) -> Value {
        serde_json::from_str(&self.find(start).expect(start).body).unwrap()
    }

    pub fn find_all(&self, start: &str) -> Vec<Request> {
        let log = self.log.lock().unwrap();
        let begins = |r: &&Request| format!("{} {}", r.method, r.target).starts_with(start);
        log.iter().filter(begins).cloned().collect()
    }

    fn find(&self, start: &str) -> Option<Request> {
        self.find_all(start).into_iter().next()
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut length = 0;
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        if header.trim().is_empty() {
            break;
        }
        let (name, value) = header.split_once(':')?;
        let (name, value) = (name.to_ascii_lowercase(), value.trim().to_owned());
        if name == "content-length" {
            length = value.parse().ok()?;
        }
        headers.push((name, value));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let path = target.split('?').next()?.to_owned();
    Some(Request { method, path, target, body: String::from_utf8(body).ok()?, headers })
}

fn write(mut stream: &TcpStream, answer: &Answer) {
    let Answer { status, body } = answer;
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    let _ = stream.write_all(text.as_bytes());
}

/// A home directory of its own, so that the client finds no files of the user who runs the tests.
#[derive(Debug)]
pub struct Sandbox {
    folder: tempfile::TempDir,
}

/// The result of a run.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("ended by a signal"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Sandbox {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn home(&self) -> &Path {
        self.folder.path()
    }

    pub fn run(&self, host: &Host, args: &[&str]) -> Ran {
        self.run_at(host.port, args)
    }

    pub fn run_at(&self, port: u16, args: &[&str]) -> Ran {
        Ran::from(self.command(port, args).output().unwrap())
    }

    pub fn command(&self, port: u16, args: &[&str]) -> Command {
        let mut command = Command::new(client());
        command.args(args).current_dir(self.home()).stdin(Stdio::null());
        command.env_clear().env("HOME", self.home()).env("USER", "tester");
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("KOHAKURIVER_HOST", "127.0.0.1").env("KOHAKURIVER_PORT", port.to_string());
        command
    }
}

/// Returns the example beside this test, which cargo builds for `cargo test`.
fn client() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("examples/client");
    assert!(path.exists(), "run with `cargo test -p kohakuriver-cli`, which also builds {path:?}");
    path
}
