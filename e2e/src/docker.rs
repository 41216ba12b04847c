//! What the tests ask of the Docker engine behind the product's back.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::process::run;

/// Names of our containers, running or not, whose files are under `dir`.
pub fn containers_under(dir: &Path) -> Vec<String> {
    let list = run(Command::new("docker").args([
        "ps",
        "--all",
        "--filter",
        "label=kohakuriver.managed=true",
        "--format",
        "{{.Names}}",
    ]))
    .ok();
    let ours = |name: &&str| {
        let format = "{{range .Mounts}}{{.Source}}\n{{end}}";
        // One of another test may be gone by now.
        let mounts = run(Command::new("docker").args(["inspect", "--format", format, name]));
        mounts.stdout.lines().any(|source| Path::new(source).starts_with(dir))
    };
    list.lines().filter(ours).map(ToOwned::to_owned).collect()
}

/// A way to the engine that can be cut, as if the engine died.
#[derive(Debug)]
pub struct Relay {
    socket: PathBuf,
    cut: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<UnixStream>>>,
}

impl Relay {
    pub fn start(dir: &Path) -> Self {
        let socket = dir.join("docker.sock");
        let listener = UnixListener::bind(&socket).expect("a socket in a fresh directory");
        let (cut, open) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (is_cut, streams) = (cut.clone(), open.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if is_cut.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(engine) = UnixStream::connect("/var/run/docker.sock") else {
                    continue;
                };
                let copy = |stream: &UnixStream| stream.try_clone().expect("descriptors are left");
                let mut known = streams.lock().expect("no one panics holding it");
                known.extend([copy(&client), copy(&engine)]);
                let (up, down) = ((copy(&client), copy(&engine)), (engine, client));
                std::thread::spawn(move || pump(up.0, up.1));
                std::thread::spawn(move || pump(down.0, down.1));
            }
        });
        Self { socket, cut, open }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Breaks every connection and refuses new ones.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
        for stream in self.open.lock().expect("no one panics holding it").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn mend(&self) {
        self.cut.store(false, Ordering::SeqCst);
    }
}

fn pump(mut from: UnixStream, mut to: UnixStream) {
    let mut buffer = [0; 64 * 1024];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
