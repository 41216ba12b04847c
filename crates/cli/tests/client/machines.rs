//! Virtual machines: create, list, status, console, and their files on nodes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;

use kohakuriver_agent_protocol::exec::{ExecExit, ExecInput, ExecOutput};
use kohakuriver_agent_protocol::{FrameReader, write};
use serde_json::{Value, json};

use crate::support::{Answer, Host, Sandbox, task};
use crate::{ID, stdout_json};

fn machine(status: &str) -> Value {
    let mut task = task(ID, "vm", status, 2);
    let more = json!({
        "vps_backend": "qemu", "vm_image": "noble", "vm_disk_size": "100G",
        "vm_ip": "10.77.0.2", "warning": "this machine is emulated",
    });
    task.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    task
}

fn host() -> Host {
    Host::start(|request| match (request.method.as_str(), request.path.as_str()) {
        ("POST", "/api/vps/create") => Answer::ok(json!({
            "message": "created", "task_id": ID, "vps_backend": "qemu", "ssh_key_mode": "disabled",
            "ssh_port": 0, "status": "assigning",
            "assigned_node": {"hostname": "node1", "url": null}, "task": machine("assigning"),
        })),
        ("GET", "/api/vps/status") => Answer::ok(json!([machine("running")])),
        ("GET", "/api/nodes") => Answer::ok(json!([
            {"hostname": "old", "status": "online"},
            {"hostname": "node1", "status": "online", "vm_capable": true},
        ])),
        ("GET", "/api/vm/images/node1") => Answer::ok(json!({
            "images_dir": "/shared/vm-images",
            "images": [{"name": "noble", "filename": "noble/disk.qcow2", "size_bytes": 300 << 20,
                "virtual_size_bytes": 3_u64 << 30, "modified_at": 1_790_000_000.5}],
        })),
        ("GET", path) if path.starts_with("/api/status/") => Answer::ok(machine("running")),
        _ => Answer::not_found(),
    })
}

#[test]
fn documented_command_creates_vm_and_shows_it() {
    let (host, sandbox) = (host(), Sandbox::new());
    let mut args = vec!["vps", "create", "--backend", "qemu", "-t", "node::0", "-c", "8"];
    args.extend(["--vm-memory", "16384", "--vm-image", "noble", "--vm-disk", "100", "--ssh"]);
    let ran = sandbox.run(&host, &args);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("  vm    noble, 100G of disk, at 10.77.0.2\n"), "{}", ran.stdout);
    assert!(ran.stderr.contains("note: this machine is emulated"), "{}", ran.stderr);
    let sent = host.body("POST /api/vps/create");
    assert_eq!((&sent["vps_backend"], &sent["vm_image"]), (&json!("qemu"), &json!("noble")));
    assert_eq!((&sent["memory_mb"], &sent["vm_disk_size"]), (&json!(16384), &json!("100")));
    assert_eq!((&sent["required_gpus"], &sent["required_cores"]), (&json!([0]), &json!(8)));
}

#[test]
fn memory_and_disk_accept_units_and_defaults_are_not_sent() {
    let sandbox = Sandbox::new();
    let sent = |args: &[&str]| {
        let host = host();
        let ran = sandbox.run(&host, &[&["vps", "create"], args].concat());
        assert_eq!(ran.code, 0, "{args:?}: {}", ran.stderr);
        host.body("POST /api/vps/create")
    };
    let body = sent(&["-b", "qemu", "--vm-memory", "2G", "--vm-disk", "2T"]);
    assert_eq!((&body["memory_mb"], &body["vm_disk_size"]), (&json!(2048), &json!("2T")));
    let body = sent(&["-b", "qemu", "-m", "3G", "-e", "A=b"]);
    assert_eq!(body["required_memory_bytes"], json!(3_u64 << 30));
    assert_eq!((&body["memory_mb"], &body["vm_image"]), (&Value::Null, &Value::Null));
    // What a copy runs on is the original's.
    let body = sent(&["--from-snapshot", "vm", "--vm-memory", "8192"]);
    assert_eq!((&body["vps_backend"], &body["memory_mb"]), (&Value::Null, &json!(8192)));
    assert_eq!(sent(&[])["vps_backend"], Value::Null);
}

#[test]
fn options_of_other_backend_are_refused_before_any_request() {
    let (host, sandbox) = (host(), Sandbox::new());
    let cases: [(&[&str], &[&str]); 10] = [
        (&["--vm-disk", "20"], &["--vm-disk is for virtual machines", "--backend qemu"]),
        (&["--vm-image", "x"], &["--vm-image is for virtual machines", "--backend qemu"]),
        (&["-b", "docker", "--vm-memory", "512"], &["--vm-memory is for virtual"]),
        (&["-b", "qemu", "--image", "debian:12"], &["--image is for containers", "--vm-image"]),
        (&["-b", "qemu", "--container", "base"], &["--container is for containers"]),
        (&["-b", "qemu", "--pids-limit", "99"], &["--pids-limit is for containers"]),
        (&["-b", "qemu", "--on-oom", "keep"], &["--on-oom is for containers"]),
        (&["-b", "qemu", "--vm-disk", "10M"], &["1G to 64T"]),
        (&["-b", "qemu", "--vm-memory", "64"], &["64M is too little", "128M"]),
        (&["-b", "qemu", "--vm-memory", "512", "-m", "1G"], &["cannot be used with"]),
    ];
    for (args, says) in cases {
        let ran = sandbox.run(&host, &[&["vps", "create"], args].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{args:?}: {}", ran.stderr);
        for part in says {
            assert!(ran.stderr.contains(part), "{args:?}: {}", ran.stderr);
        }
    }
    assert!(host.find_all("").is_empty());
}

#[test]
fn lists_and_status_show_what_runs_it() {
    let (host, sandbox) = (host(), Sandbox::new());
    let list = sandbox.run(&host, &["vps", "list"]).stdout;
    assert!(list.contains("BACKEND") && list.contains("qemu"), "{list}");
    let shown = sandbox.run(&host, &["vps", "status", "vm"]).stdout;
    for part in ["qemu", "noble", "100G", "10.77.0.2", "emulated", "terminal attach vm"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

#[test]
fn backends_and_images_complete() {
    let (host, sandbox) = (host(), Sandbox::new());
    let ask = |last: &str| {
        let words = ["--", "kohakuriver", "vps", "create", last, ""];
        let mut command = sandbox.command(host.port, &words);
        command.env("COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", "4").env("_CLAP_IFS", "\n");
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let backends = ask("--backend");
    assert!(backends.contains("docker") && backends.contains("qemu"), "{backends}");
    assert!(ask("--vm-image").contains("noble"));
}

/// A host with a virtual machine whose console prints `greeting`, echoes its input, and ends with
/// it.
fn console(status: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut head = String::new();
            while reader.read_line(&mut head).unwrap() > 2 {}
            if !head.contains("target=attach") {
                let body = machine(status).to_string();
                let text = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
                     connection: close\r\n\r\n{body}",
                    body.len()
                );
                (&stream).write_all(text.as_bytes()).unwrap();
                continue;
            }
            assert!(head.starts_with(&format!("GET /api/vps/{ID}/stream")), "{head}");
            (&stream)
                .write_all(
                    b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: kohakuriver-stream\r\n\r\n",
                )
                .unwrap();
            stream.set_nonblocking(true).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(serve(stream));
        }
    });
    port
}

async fn serve(stream: std::net::TcpStream) {
    let (read, mut to_client) = tokio::net::TcpStream::from_std(stream).unwrap().into_split();
    let mut reader = FrameReader::<_, ExecInput>::new(read, &[]);
    let Ok(Some(ExecInput::Start(start))) = reader.next().await else { panic!("no start") };
    assert!(start.argv.is_empty() && start.user.is_none() && start.tty.is_none(), "{start:?}");
    write(&mut to_client, &ExecOutput::Stdout("login: ".into())).await.unwrap();
    while let Ok(Some(message)) = reader.next().await {
        match message {
            ExecInput::Stdin(data) => {
                write(&mut to_client, &ExecOutput::Stdout(data)).await.unwrap();
            }
            ExecInput::StdinEnd => break,
            other @ (ExecInput::Start(_) | ExecInput::Signal(_) | ExecInput::Resize(_)) => {
                panic!("{other:?}")
            }
        }
    }
    write(&mut to_client, &ExecOutput::Exit(ExecExit::Code(0))).await.unwrap();
}

#[test]
fn console_attaches_without_program_also_during_start() {
    for status in ["running", "assigning"] {
        let sandbox = Sandbox::new();
        let mut command = sandbox.command(console(status), &["terminal", "attach", "vm"]);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        // What is piped in may hold tildes: it is not typed.
        child.stdin.take().unwrap().write_all(b"\r~droot\r").unwrap();
        let mut seen = String::new();
        child.stdout.take().unwrap().read_to_string(&mut seen).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert_eq!(seen, "login: \r~droot\r");
    }
    let sandbox = Sandbox::new();
    let ran = sandbox.run_at(console("running"), &["terminal", "attach", "vm", "-s", "/bin/sh"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    assert!(ran.stderr.contains("is a virtual machine"), "{}", ran.stderr);
}

#[test]
fn node_images_have_original_columns() {
    let (host, sandbox) = (host(), Sandbox::new());
    let ran = sandbox.run(&host, &["images", "node1"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert!(lines[0].starts_with("NAME   VIRTUAL SIZE  ACTUAL SIZE  MODIFIED"), "{lines:?}");
    assert!(lines[1].starts_with("noble  3G            300M"), "{lines:?}");
    assert_eq!(
        stdout_json(&sandbox.run(&host, &["images", "node1", "--json"]))["images"][0]["name"],
        "noble"
    );
    let ran = sandbox.run(&host, &["images", "absent"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("kohakuriver node list"), "{}", ran.stderr);
}

#[test]
fn orphans_are_shown_and_cleaned_up() {
    let host = Host::start(|request| match request.method.as_str() {
        "DELETE" => Answer::ok(json!({"message": "gone", "task_id": "8", "freed_bytes": 5 << 20})),
        _ => Answer::ok(json!({
            "summary": {"total_instances": 2, "orphaned_count": 1,
                "total_disk_usage_bytes": 10 << 20},
            "nodes": [
                {"hostname": "node1", "status": "online", "instances": [
                    {"task_id": ID, "disk_usage_bytes": 5 << 20, "files": ["disk.qcow2", "seed"],
                     "qemu_running": true, "qemu_pid": 42, "db_status": "running",
                     "task_metadata": {"status": "running", "name": "vm"}},
                    {"task_id": "8", "disk_usage_bytes": 5 << 20, "db_status": "orphaned"},
                ]},
                {"hostname": "node2", "status": "unreachable", "error": "node 'node2' is offline"},
            ],
        })),
    });
    let sandbox = Sandbox::new();
    let ran = sandbox.run(&host, &["qemu", "instances"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for part in ["machines:    2", "orphaned:    1", "10M", "pid 42", "disk.qcow2 seed", "vm"] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    assert!(ran.stderr.contains("node2 could not be queried") && ran.stderr.contains("cleanup"));
    let unasked = sandbox.run(&host, &["qemu", "cleanup", "8", "--node", "node1"]);
    assert_eq!(unasked.code, 2, "{}", unasked.stderr);
    assert!(!host.saw("DELETE"));
    let ran = sandbox.run(&host, &["qemu", "cleanup", "8", "--hostname", "node1", "-f", "-y"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "gone (5M of disk)\n"), "{}", ran.stderr);
    assert!(host.saw("DELETE /api/vps/vm-instances/8?force=true&hostname=node1"));
}
