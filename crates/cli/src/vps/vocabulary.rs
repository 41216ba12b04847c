//! The shared vocabulary of commands about VPSes: references, hints, and texts of limits and failures.
//!
//! It stands below all commands and imports none of them.

use kohakuriver_api::Task;
use kohakuriver_model::{BackendKind, Memory};

use crate::error::{CommandError, Kind};

/// Returns the caller's reference for a VPS: its name if the caller owns it, `NAME.OWNER` if another
/// account does, and its id if it has no name. Commands accept all three.
pub fn called(task: &Task) -> &str {
    if !task.reference.is_empty() {
        return &task.reference;
    }
    task.name.as_deref().unwrap_or(&task.task_id)
}

/// Returns whether the VPS runs on the QEMU backend.
pub fn is_machine(task: &Task) -> bool {
    task.vps_backend == BackendKind::Qemu.word()
}

/// Adds a hint that names `vps list` to a not-found error.
pub fn with_list_hint(failure: CommandError) -> CommandError {
    if failure.kind != Kind::NotFound {
        return failure;
    }
    failure.or_hint(|| "`kohakuriver vps list -a` shows all VPSes".to_owned())
}

/// Builds the error for a VPS from the failure that its node reported.
pub fn reported_failure(task: &Task) -> CommandError {
    let reason = task.error_message.as_deref().unwrap_or("the node gave no reason");
    let state = match &task.transition {
        Some(transition) if task.status != "failed" => format!("is still {transition}"),
        _ => "failed".to_owned(),
    };
    let failure = CommandError::request(format!("VPS {} {state}: {reason}", called(task)));
    match &task.error_hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Returns whether the VPS was created with `--ssh`.
pub fn has_ssh(task: &Task) -> bool {
    task.ssh_port != Some(0)
}

/// Formats the limit of cores; `all` without one.
pub fn cores(task: &Task) -> String {
    match task.required_cores {
        0 => "all".to_owned(),
        count => count.to_string(),
    }
}

/// Formats the memory limit; `all` without one.
pub fn memory(task: &Task) -> String {
    match task.required_memory_bytes {
        None | Some(0) => "all".to_owned(),
        Some(bytes) => Memory::from_bytes(bytes).to_string(),
    }
}

/// Parses `KEY=VALUE` of a node's label; the host checks the permitted characters.
pub fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("write KEY=VALUE, for example disk=ssd".to_owned()),
    }
}
