//! The JSON terminal of existing clients, before an agent that echoes.

use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::{SinkExt, StreamExt};
use kohakuriver_agent_protocol::session::{SessionInput, SessionOutput};
use kohakuriver_agent_protocol::{FrameReader, write};
use kohakuriver_testkit::{AgentStream, FakeRunner, TestHost};
use serde_json::json;
use tokio::io::split;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

const LIMIT: Duration = Duration::from_secs(30);

/// Reports the terminal's size, and the input at each position.
async fn echo(stream: AgentStream) -> Result<()> {
    let (read, mut answers) = split(stream);
    let mut input = FrameReader::<_, SessionInput>::new(read, &[]);
    while let Some(message) = input.next().await? {
        let text = match message {
            SessionInput::Attach(attach) => format!("<{}x{}>", attach.size.cols, attach.size.rows),
            SessionInput::Resize(size) => format!("<{}x{}>", size.cols, size.rows),
            SessionInput::Input { position, data } => {
                format!("<{position} {}>", String::from_utf8_lossy(&data))
            }
            SessionInput::Hangup | SessionInput::List | SessionInput::End(_) => continue,
        };
        write(&mut answers, &SessionOutput::Output(text.into())).await?;
    }
    Ok(())
}

/// Returns the output that a client with these messages gets, up to the expected text.
async fn shown(host: &TestHost, sent: &[serde_json::Value], until: &str) -> Result<String> {
    let address = host.host.api_address();
    let url = format!("ws://{address}/ws/task/web/terminal");
    let stream = TcpStream::connect(address).await?;
    let (mut socket, _) = tokio_tungstenite::client_async(url.as_str(), stream).await?;
    for message in sent {
        socket.send(Message::text(message.to_string())).await?;
    }
    let mut shown = String::new();
    while !shown.contains(until) {
        let next = tokio::time::timeout(LIMIT, socket.next()).await;
        let message = next.with_context(|| shown.clone())?.context("it ended")??;
        if let Ok(text) = message.to_text() {
            let message: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
            shown.push_str(message["data"].as_str().unwrap_or_default());
        }
    }
    Ok(shown)
}

#[tokio::test]
async fn json_terminal_keeps_input_before_first_resize() -> Result<()> {
    let host = TestHost::start().await?;
    let _runner = FakeRunner::join_with_agent(&host, "n1", |_, stream| async move {
        let _ = echo(stream).await;
    })
    .await?;
    assert_eq!(host.post("/api/vps/create", json!({"name": "web"})).await?.status, 200);
    let typed = |data: &str| json!({"type": "input", "data": data});
    let sized = json!({"type": "resize", "rows": 30, "cols": 100});
    let all = shown(&host, &[typed("ls"), sized.clone(), typed("\r")], "<2 \r>").await?;
    assert_eq!(all, "<80x24><0 ls><100x30><2 \r>");
    let all = shown(&host, &[sized, typed("ls")], "<0 ls>").await?;
    assert_eq!(all, "<100x30><0 ls>");
    assert_eq!(shown(&host, &[], "<80x24>").await?, "<80x24>");
    Ok(())
}
