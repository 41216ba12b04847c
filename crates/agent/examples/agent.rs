//! The agent as a process of its own: `agent CONFIG_DIR RUN_DIR`, or `agent --sftp-server` and the like for its helpers.

use std::path::Path;
use std::process::ExitCode;

use kohakuriver_agent::AgentOptions;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["agent", "--sftp-server"] => kohakuriver_agent::sftp_server(),
        ["agent", "--files-server"] => kohakuriver_agent::files_server(),
        ["agent", "--watch-server"] => kohakuriver_agent::watch_server(),
        ["guest", config, run, port] => match port.parse() {
            Ok(port) => kohakuriver_agent::run_with(AgentOptions {
                guest_port: Some(port),
                ..AgentOptions::new(Path::new(config), Path::new(run))
            }),
            Err(_) => return ExitCode::from(2),
        },
        [config, run] => kohakuriver_agent::run(Path::new(config), Path::new(run)),
        _ => return ExitCode::from(2),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
