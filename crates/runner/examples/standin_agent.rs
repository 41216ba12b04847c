//! Stands in for the agent in tests of the runner: answers on the socket, echoes streams, ends on
//! SIGTERM's own terms (it is killed after the grace), and exits with 3 when `die` is opened.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

const SOCKET: &str = "/.kohakuriver/run/agent.sock";

fn main() -> std::io::Result<()> {
    let _ = std::fs::remove_file(SOCKET);
    let listener = UnixListener::bind(SOCKET)?;
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || serve(stream));
    }
    Ok(())
}

fn serve(mut stream: UnixStream) -> std::io::Result<()> {
    let mut line = Vec::new();
    let mut byte = [0u8];
    while byte[0] != b'\n' {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    let line = String::from_utf8_lossy(&line);
    if line.contains("ping") {
        return stream.write_all(b"{\"ok\":true,\"pid\":1,\"version\":\"0\"}\n");
    }
    // Port 3 stands for a program that ends the instance.
    if line.contains("\"port\":3}") {
        std::process::exit(3);
    }
    if line.contains("\"port\":1}") {
        return stream.write_all(b"{\"ok\":false,\"error\":\"nothing listens on port 1\"}\n");
    }
    stream.write_all(b"{\"ok\":true}\n")?;
    let mut reader = stream.try_clone()?;
    std::io::copy(&mut reader, &mut stream)?;
    stream.shutdown(std::net::Shutdown::Write)
}
