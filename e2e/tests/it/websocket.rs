//! The WebSockets that browsers and existing clients use.

use std::net::TcpStream;
use std::time::Duration;

use bytes::Bytes;
use kohakuriver_agent_protocol::tunnel::{Kind, Proto, TunnelFrame};
use kohakuriver_e2e::{BUSYBOX, Site};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

pub type Socket = WebSocket<TcpStream>;

pub fn open(site: &Site, path: &str) -> Socket {
    let address = format!("127.0.0.1:{}", site.port());
    let stream = TcpStream::connect(&address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    client(format!("ws://{address}{path}"), stream).unwrap().0
}

/// The next message that is not the protocol's own.
fn read(socket: &mut Socket) -> Message {
    loop {
        let message = socket.read().unwrap();
        if !message.is_ping() && !message.is_pong() {
            return message;
        }
    }
}

pub fn read_json(socket: &mut Socket) -> Value {
    serde_json::from_str(read(socket).to_text().unwrap()).unwrap()
}

pub fn say(socket: &mut Socket, value: &Value) {
    socket.send(Message::text(value.to_string())).unwrap();
}

pub fn close_code(socket: &mut Socket) -> Option<u16> {
    let message = read(socket);
    let Message::Close(frame) = message else {
        panic!("no close but {message:?}");
    };
    frame.map(|frame| frame.code.into())
}

#[test]
fn the_json_terminal_starts_with_an_empty_output_and_ends_with_its_socket() {
    let mut site = Site::new();
    let _server = site.up();
    let task = site.json(&["vps", "create", "--name", "web", "--image", BUSYBOX]);
    let id = task["task_id"].as_str().unwrap();
    let mut socket = open(&site, &format!("/ws/task/{id}/terminal"));
    say(&mut socket, &json!({"type": "resize", "rows": 33, "cols": 99}));
    assert_eq!(read_json(&mut socket), json!({"type": "output", "data": ""}));
    say(&mut socket, &json!({"type": "input", "data": "stty size; echo h\u{e9}llo\r"}));
    let mut seen = String::new();
    while !(seen.contains("33 99") && seen.contains("\nh\u{e9}llo")) {
        let message = read_json(&mut socket);
        assert_eq!(message["type"], "output");
        seen.push_str(message["data"].as_str().unwrap());
    }
    assert_eq!(site.json(&["connect", "web", "--list"]).as_array().unwrap().len(), 1);
    say(&mut socket, &json!({"type": "input", "data": "exit\r"}));
    loop {
        if let Message::Close(frame) = read(&mut socket) {
            assert_eq!(u16::from(frame.unwrap().code), 1000);
            break;
        }
    }
    // One that breaks off takes its shell along.
    let mut socket = open(&site, &format!("/ws/task/{id}/terminal"));
    say(&mut socket, &json!({"type": "resize", "rows": 24, "cols": 80}));
    read_json(&mut socket);
    drop(socket);
    kohakuriver_e2e::wait_until("no shell is left", Duration::from_secs(5), || {
        site.json(&["connect", "web", "--list"]) == json!([])
    });
    let mut unknown = open(&site, "/ws/task/123/terminal");
    assert_eq!(read_json(&mut unknown)["type"], "output");
    assert_eq!(read_json(&mut unknown)["type"], "error");
    assert_eq!(close_code(&mut unknown), Some(1008));
}

fn frame(kind: Kind, client: u32, port: u16, payload: &'static [u8]) -> Message {
    let payload = Bytes::from_static(payload);
    Message::Binary(TunnelFrame { kind, proto: Proto::Tcp, client, port, payload }.encode())
}

fn read_frame(socket: &mut Socket) -> TunnelFrame {
    TunnelFrame::decode(read(socket).into_data()).unwrap()
}

#[test]
fn the_forward_socket_serves_existing_clients_and_keeps_their_numbers_to_itself() {
    let mut site = Site::new();
    let _server = site.up();
    let task = site.json(&["vps", "create", "--name", "web", "--image", BUSYBOX]);
    let id = task["task_id"].as_str().unwrap();
    let service = "nc -ll -p 7000 -e cat >/dev/null 2>&1 & sleep 0.3";
    site.kr(&["terminal", "exec", "web", "--", "setsid", "sh", "-c", service]).ok();
    let path = format!("/ws/forward/{id}/7000?proto=tcp");
    let (mut one, mut two) = (open(&site, &path), open(&site, &path));
    for socket in [&mut one, &mut two] {
        assert_eq!(read(socket).to_text().unwrap(), "CONNECTED");
        // Data right behind the connect, as clients send it.
        socket.send(frame(Kind::Connect, 1, 7000, b"")).unwrap();
    }
    one.send(frame(Kind::Data, 1, 0, b"first")).unwrap();
    two.send(frame(Kind::Data, 1, 0, b"second")).unwrap();
    for (socket, text) in [(&mut one, &b"first"[..]), (&mut two, b"second")] {
        assert_eq!(read_frame(socket).kind, Kind::Connected);
        let data = read_frame(socket);
        assert_eq!((data.kind, data.client, &data.payload[..]), (Kind::Data, 1, text));
    }
    one.send(frame(Kind::Ping, 9, 0, b"")).unwrap();
    assert_eq!(read_frame(&mut one).kind, Kind::Pong);
    // What is no frame is told, and costs nobody anything.
    one.send(Message::Binary(Bytes::from_static(&[1, 2]))).unwrap();
    assert_eq!(read_frame(&mut one).kind, Kind::Error);
    one.send(Message::Binary(Bytes::from_static(&[99, 0, 0, 0, 0, 1, 0, 0]))).unwrap();
    assert_eq!(read_frame(&mut one).kind, Kind::Error);
    one.send(frame(Kind::Connect, 2, 22, b"")).unwrap();
    assert_eq!(read_frame(&mut one).kind, Kind::Error, "another port than the socket's");
    one.send(frame(Kind::Data, 1, 0, b"still there")).unwrap();
    assert_eq!(&read_frame(&mut one).payload[..], b"still there");
    one.send(frame(Kind::Close, 1, 0, b"")).unwrap();
    assert_eq!(read_frame(&mut one).kind, Kind::Close);
    two.send(frame(Kind::Data, 1, 0, b"me too")).unwrap();
    assert_eq!(&read_frame(&mut two).payload[..], b"me too");

    let mut unknown = open(&site, "/ws/forward/123/80");
    assert!(read(&mut unknown).to_text().unwrap().starts_with("Error: "));
    assert_eq!(close_code(&mut unknown), Some(1008));
}
