use proptest::prelude::*;

use super::*;

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn request() -> impl Strategy<Value = StreamTarget> {
    prop_oneof![
        Just(StreamTarget::Ssh),
        any::<u16>().prop_map(|port| StreamTarget::Tcp { port }),
        Just(StreamTarget::Ping),
    ]
}

fn reply() -> impl Strategy<Value = StreamReply> {
    prop_oneof![
        Just(StreamReply::Ready),
        (any::<u32>(), "[a-z0-9.]{0,20}")
            .prop_map(|(pid, version)| StreamReply::Pong { pid, version }),
        "\\PC{0,100}".prop_map(|error| StreamReply::Refused { error }),
    ]
}

proptest! {
    #[test]
    fn a_request_reads_back_and_leaves_the_following_bytes(
        request in request(),
        rest in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        block_on(async {
            let mut bytes = Vec::new();
            write_request(&mut bytes, &request).await.unwrap();
            bytes.extend_from_slice(&rest);
            let mut left = bytes.as_slice();
            assert_eq!(read_request(&mut left).await.unwrap(), request);
            assert_eq!(left, rest.as_slice());
        });
    }

    #[test]
    fn a_reply_reads_back(reply in reply()) {
        block_on(async {
            let mut bytes = Vec::new();
            write_reply(&mut bytes, &reply).await.unwrap();
            assert_eq!(read_reply(&mut bytes.as_slice()).await.unwrap(), reply);
        });
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_are_read_within_the_bound(
        bytes in proptest::collection::vec(any::<u8>(), 0..6000),
    ) {
        block_on(async {
            let mut left = bytes.as_slice();
            let _ = read_request(&mut left).await;
            assert!(bytes.len() - left.len() <= MAX_LINE);
        });
    }
}

#[test]
fn the_lines_are_those_the_runner_and_the_agent_agreed_on() {
    let line = |request: &StreamTarget| serde_json::to_string(request).unwrap();
    assert_eq!(line(&StreamTarget::Ssh), r#"{"target":"ssh"}"#);
    assert_eq!(line(&StreamTarget::Tcp { port: 8080 }), r#"{"target":"tcp","port":8080}"#);
    assert_eq!(line(&StreamTarget::Ping), r#"{"target":"ping"}"#);
    assert_eq!(serde_json::to_string(&StreamReply::Ready).unwrap(), r#"{"ok":true}"#);
    let refused = StreamReply::Refused { error: "no".into() };
    assert_eq!(serde_json::to_string(&refused).unwrap(), r#"{"ok":false,"error":"no"}"#);
}

#[test]
fn a_line_without_end_is_refused() {
    let endless = vec![b' '; 2 * MAX_LINE];
    let result = block_on(read_request(&mut endless.as_slice()));
    assert!(matches!(result, Err(WireError::TooLong)));
}

#[test]
fn a_line_cut_short_is_refused() {
    let result = block_on(read_request(&mut br#"{"target":"ssh"}"#.as_slice()));
    assert!(matches!(result, Err(WireError::Closed)));
}
