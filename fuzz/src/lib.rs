//! Everything that parses bytes from outside, as functions of bytes: a panic, a hang or unbounded
//! memory is a defect.
//!
//! `tests/corpus.rs` runs every file of `corpus/` and thousands of mutations of them with each
//! `make test`. `make fuzz` looks for new ones with libFuzzer (see `libfuzzer/`); what it finds
//! goes into the corpus, with the fix.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use bytes::{Bytes, BytesMut};
use kohakuriver_agent_protocol::exec::{ExecInput, ExecOutput};
use kohakuriver_agent_protocol::files::{
    FilesInput, FilesOutput, MAX_NAME, is_forbidden, normalise, partial_name,
};
use kohakuriver_agent_protocol::proof::{admit_runner, prove_to_agent};
use kohakuriver_agent_protocol::session::{SessionInput, SessionOutput};
use kohakuriver_agent_protocol::tunnel::TunnelFrame;
use kohakuriver_agent_protocol::watch::{WatchInput, WatchOutput};
use kohakuriver_agent_protocol::{
    GuestSecret, StreamReply, StreamTarget, decode_all, gateway, udp,
};
use kohakuriver_runner_link::frame::FrameStream;
use kohakuriver_runner_link::protocol::{StreamOpen, StreamOpened, ToHost, ToRunner};
use serde::de::DeserializeOwned;

mod seeds;

pub use seeds::seeds;

/// A target's name, as in `corpus/`, and the function that is run on each input.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 18] = [
    ("gateway-greeting", |bytes| {
        let _ = gateway::tunnel_request(bytes);
    }),
    ("request-head", kohakuriver_host::fuzzing::request_head),
    ("forward-frame", forward_frame),
    ("link-to-host", link::<ToHost>),
    ("link-to-runner", link::<ToRunner>),
    ("link-stream", |bytes| {
        link::<StreamOpen>(bytes);
        link::<StreamOpened>(bytes);
    }),
    ("stream-greeting", |bytes| {
        drop(serde_json::from_slice::<StreamTarget>(bytes));
        drop(serde_json::from_slice::<StreamReply>(bytes));
    }),
    ("guest-proof", guest_proof),
    ("qmp-line", |bytes| drop(kohakuriver_vm::qmp::parse(bytes))),
    ("exec-frames", |bytes| {
        drop(decode_all::<ExecInput>(bytes));
        drop(decode_all::<ExecOutput>(bytes));
    }),
    ("session-frames", |bytes| {
        drop(decode_all::<SessionInput>(bytes));
        drop(decode_all::<SessionOutput>(bytes));
    }),
    ("files-frames", |bytes| {
        drop(decode_all::<FilesInput>(bytes));
        drop(decode_all::<FilesOutput>(bytes));
    }),
    ("files-path", files_path),
    ("watch-frames", |bytes| {
        drop(decode_all::<WatchInput>(bytes));
        drop(decode_all::<WatchOutput>(bytes));
    }),
    ("datagrams", datagrams),
    ("sftp-packet", kohakuriver_agent::fuzzing::sftp_packet),
    ("terminal-output", kohakuriver_agent::fuzzing::terminal_output),
    ("command-words", kohakuriver_agent::fuzzing::command_words),
];

fn forward_frame(bytes: &[u8]) {
    if let Ok(frame) = TunnelFrame::decode(Bytes::copy_from_slice(bytes)) {
        assert_eq!(&frame.encode()[..], bytes, "a frame is written as it was read");
    }
}

/// Sends the bytes to either end of the proof; neither may accept them.
fn guest_proof(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(secret) = text.parse::<GuestSecret>()
    {
        assert!(text.trim_ascii().eq_ignore_ascii_case(&secret.to_text()), "a secret is one text");
    }
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else {
        return;
    };
    let secret = GuestSecret::random();
    runtime.block_on(async {
        let mut stream = tokio::io::join(bytes, tokio::io::sink());
        assert!(admit_runner(&mut stream, &secret).await.is_err(), "no proof without the secret");
        let mut stream = tokio::io::join(bytes, tokio::io::sink());
        assert!(
            prove_to_agent(&mut stream, &secret).await.is_err(),
            "no agent proof without the secret"
        );
    });
}

fn files_path(bytes: &[u8]) {
    let text = OsStr::from_bytes(bytes);
    if let Ok(path) = normalise(text) {
        assert!(!is_forbidden(&path), "a path that is let through leads to files");
        assert_eq!(normalise(path.as_os_str()).as_ref(), Ok(&path), "normal paths are unchanged");
    }
    assert!(bytes.len() > MAX_NAME || partial_name(text).len() <= MAX_NAME);
}

fn datagrams(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    let mut again = BytesMut::new();
    while let Some(datagram) = udp::take(&mut buffer) {
        udp::put(&mut again, &datagram);
    }
    again.extend_from_slice(&buffer);
    assert_eq!(&again[..], bytes, "no bytes are lost between datagrams");
}

/// Decodes frames of the runners' link until the first invalid one.
fn link<T: DeserializeOwned>(bytes: &[u8]) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else {
        return;
    };
    runtime.block_on(async {
        let mut frames = FrameStream::new(tokio::io::join(bytes, tokio::io::sink()));
        while frames.receive::<T>().await.is_ok() {}
    });
}
