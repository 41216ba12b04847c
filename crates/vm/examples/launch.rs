//! Becomes the program it is told, as the executable does in the role of `vm-launch`.

fn main() -> std::io::Result<()> {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    match kohakuriver_vm::launch::run(&words)? {}
}
