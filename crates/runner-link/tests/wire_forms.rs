//! The written JSON form of every message, recorded from version 4 of the control protocol: the
//! types read each recorded line and write the same line, whatever their Rust names are.

#![allow(clippy::unwrap_used, reason = "an unexpected error fails the test")]

use std::collections::BTreeSet;
use std::fmt::Debug;

use kohakuriver_runner_link::enroll::{EnrollReply, EnrollRequest};
use kohakuriver_runner_link::protocol::{
    InstanceCommand, InstanceReply, NodeQuery, NodeReply, StreamOpen, StreamOpened, StreamTarget,
    ToHost, ToRunner, VERSIONS,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads every line as `T`, checks that `T` writes the same line, and returns the messages.
fn reread<T: Serialize + DeserializeOwned + Debug>(lines: &str) -> Vec<T> {
    let reread = |line: &str| {
        let message: T = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::to_string(&message).unwrap(), line, "{message:?}");
        message
    };
    lines.lines().map(reread).collect()
}

/// The variants by a number each. A new variant does not compile here until it has one, and
/// a recorded line.
fn all_recorded<T>(messages: &[T], number: impl Fn(&T) -> usize, count: usize) {
    let recorded: BTreeSet<usize> = messages.iter().map(number).collect();
    assert_eq!(recorded, (0..count).collect(), "a variant has no recorded line");
}

#[test]
fn messages_to_the_host_keep_their_written_form() {
    let messages: Vec<ToHost> = reread(include_str!("wire_forms/to_host.jsonl"));
    let number = |message: &ToHost| match message {
        ToHost::Hello(_) => 0,
        ToHost::Observation { .. } => 1,
        ToHost::SyncDone => 2,
        ToHost::Heartbeat { .. } => 3,
        ToHost::Inventory { .. } => 4,
        ToHost::DialFailed { .. } => 5,
        ToHost::RenewCertificate { .. } => 6,
        ToHost::InstanceReply { answer, .. } => match answer {
            InstanceReply::Snapshots { .. } => 7,
            InstanceReply::Created { .. } => 8,
            InstanceReply::Deleted => 9,
            InstanceReply::Failed { .. } => 10,
        },
        ToHost::NodeReply { answer, .. } => match answer {
            NodeReply::VmImages { .. } => 11,
            NodeReply::Machines { .. } => 12,
            NodeReply::Deleted { .. } => 13,
            NodeReply::Failed { .. } => 14,
        },
    };
    all_recorded(&messages, number, 15);
}

#[test]
fn messages_to_the_runner_keep_their_written_form() {
    let messages: Vec<ToRunner> = reread(include_str!("wire_forms/to_runner.jsonl"));
    let number = |message: &ToRunner| match message {
        ToRunner::Welcome { .. } => 0,
        ToRunner::Refused { .. } => 1,
        ToRunner::Order(_) => 2,
        ToRunner::SyncDone => 3,
        ToRunner::HeartbeatAck => 4,
        ToRunner::DialData { .. } => 5,
        ToRunner::Certificate { .. } => 6,
        ToRunner::InstanceCommand { command, .. } => match command {
            InstanceCommand::ListSnapshots { .. } => 7,
            InstanceCommand::CreateSnapshot { .. } => 8,
            InstanceCommand::DeleteSnapshot { .. } => 9,
        },
        ToRunner::NodeQuery { query, .. } => match query {
            NodeQuery::ListVmImages => 10,
            NodeQuery::ListMachines => 11,
            NodeQuery::DeleteMachine { .. } => 12,
        },
    };
    all_recorded(&messages, number, 13);
}

#[test]
fn stream_openings_keep_their_written_form() {
    let messages: Vec<StreamOpen> = reread(include_str!("wire_forms/stream_open.jsonl"));
    let number = |message: &StreamOpen| match message.target {
        StreamTarget::Ssh => 0,
        StreamTarget::Tcp { .. } => 1,
        StreamTarget::Udp { .. } => 2,
        StreamTarget::Exec => 3,
        StreamTarget::Attach => 4,
        StreamTarget::Session => 5,
        StreamTarget::Files => 6,
        StreamTarget::Watch => 7,
        StreamTarget::Settings => 8,
        StreamTarget::Ping => 9,
    };
    all_recorded(&messages, number, 10);
    let results: Vec<StreamOpened> = reread(include_str!("wire_forms/stream_opened.jsonl"));
    let number = |message: &StreamOpened| match message {
        StreamOpened::Opened => 0,
        StreamOpened::Refused { .. } => 1,
    };
    all_recorded(&results, number, 2);
}

#[test]
fn enrollment_messages_keep_their_written_form() {
    let requests: Vec<EnrollRequest> = reread(include_str!("wire_forms/enroll_request.jsonl"));
    assert_eq!(requests.len(), 1);
    let replies: Vec<EnrollReply> = reread(include_str!("wire_forms/enroll_reply.jsonl"));
    let number = |reply: &EnrollReply| match reply {
        EnrollReply::Accepted { .. } => 0,
        EnrollReply::Refused { .. } => 1,
    };
    all_recorded(&replies, number, 2);
}

#[test]
fn recorded_forms_are_those_of_the_current_version() {
    assert_eq!(VERSIONS, (4, 4), "record the lines of the new version beside those of the old one");
}
