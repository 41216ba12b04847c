//! The executable of the QEMU backend's tests: becomes QEMU on the node, and is the agent in the
//! guest.

use std::path::Path;

use kohakuriver_vm::launch;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    if words.first().is_some_and(|role| role == launch::ROLE) {
        let never = launch::run(&words[1..])?;
        match never {}
    }
    let run = Path::new("/run/kohakuriver");
    Ok(kohakuriver_agent::run_guest(&run.join("etc"), &run.join("run"))?)
}
