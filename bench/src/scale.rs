//! Two hundred concurrent creates on one node, and the host's response times meanwhile.

use std::process::Stdio;
use std::time::{Duration, Instant};

use kohakuriver_e2e::{BUSYBOX, Site};

use crate::sample::{Line, timed};

const VPSES: usize = 200;

pub fn run() -> Vec<Line> {
    let mut site = Site::new();
    let _server = site.up();
    let began = Instant::now();
    let mut clients: Vec<_> = (0..VPSES)
        .map(|number| {
            let name = format!("many-{number}");
            let arguments = ["vps", "create", "--detach", "--name", &name, "--image", BUSYBOX];
            let mut command = site.command();
            command
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
        })
        .collect();
    let mut answers = Vec::new();
    let mut running = 0;
    while running < VPSES {
        assert!(began.elapsed() < Duration::from_secs(600), "{running} of {VPSES} run");
        let mut listed = String::new();
        // Without a program's start: what the host itself takes.
        answers.push(timed(|| listed = get(&site, "/api/vps")));
        let tasks: serde_json::Value = serde_json::from_str(&listed).unwrap_or_default();
        let status = |word: &str| {
            let tasks = tasks.as_array().into_iter().flatten();
            tasks.filter(|task| task["status"] == word).count()
        };
        assert_eq!(status("failed"), 0, "one failed: {listed}");
        running = status("running");
        std::thread::sleep(Duration::from_millis(100));
    }
    let took = began.elapsed();
    for client in clients.iter_mut().flatten() {
        let ended = client.wait().expect("a client can be waited for");
        assert!(ended.success(), "every create was taken");
    }
    assert_eq!(site.containers().len(), VPSES, "each has its one container");
    let mut sorted = answers.clone();
    sorted.sort_unstable();
    let slow = sorted[sorted.len() * 99 / 100];
    vec![
        Line::new(format!("{VPSES} creates at once, all running"), "s", vec![took.as_secs_f64()]),
        Line::millis("GET /api/vps meanwhile", &answers),
        Line::millis("  of these the 99th percentile", &[slow]),
    ]
}

/// Sends one plain request.
fn get(site: &Site, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream =
        std::net::TcpStream::connect(("127.0.0.1", site.port())).expect("the host listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("the host reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the host answers");
    let text = String::from_utf8_lossy(&answer).into_owned();
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    // The body comes in one piece or in chunks; JSON begins and ends with brackets either way.
    match (body.find('['), body.rfind(']')) {
        (Some(first), Some(last)) => body[first..=last].to_owned(),
        _ => body,
    }
}
