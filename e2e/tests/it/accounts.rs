//! People: the first admin, an invited user, what they ask for, what they share, and the log of
//! it, with the command line of each in a home of their own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use kohakuriver_e2e::{
    BUSYBOX, Output, Server, Site, SmallDisk, Terminal, run, run_with_input, wait_until,
};
use kohakuriver_testkit::{Browser, CLIENT_SECRET, OidcProvider};
use serde_json::Value;
use tokio::runtime::Runtime;

const PASSWORD: &str = "correct horse";

/// Somebody at a machine of their own.
struct Person<'a> {
    site: &'a Site,
    name: &'static str,
}

impl<'a> Person<'a> {
    fn new(site: &'a Site, name: &'static str) -> Self {
        let person = Self { site, name };
        fs::create_dir_all(person.home()).unwrap();
        person
    }

    fn home(&self) -> PathBuf {
        self.site.path().join("homes").join(self.name)
    }

    fn config(&self, file: &str) -> PathBuf {
        self.home().join(".config/kohakuriver").join(file)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.site.command();
        command.env("HOME", self.home()).args(arguments);
        command
    }

    fn kr(&self, arguments: &[&str]) -> Output {
        run(&mut self.command(arguments))
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let text = self.kr(&[arguments, &["--json"]].concat()).ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text:?}"))
    }

    /// Makes the account of this name.
    #[track_caller]
    fn register(&self, invitation: &str) {
        let arguments = [
            "auth",
            "register",
            "--token",
            invitation,
            "--username",
            self.name,
            "--password-stdin",
        ];
        let done = run_with_input(&mut self.command(&arguments), PASSWORD.as_bytes());
        assert!(done.ok().contains(&format!("as {}", self.name)));
    }

    /// With what is written in the configuration file alone.
    fn by_file(&self, arguments: &[&str]) -> Output {
        run(self.command(arguments).env_remove("KOHAKURIVER_HOST").env_remove("KOHAKURIVER_PORT"))
    }

    fn status(&self, vps: &str) -> String {
        let output = self.kr(&["vps", "status", vps, "--json"]);
        let task: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        task["status"].as_str().unwrap_or_default().to_owned()
    }
}

/// What the host printed for its first admin.
fn first_invitation(server: &Server) -> String {
    let mut token = None;
    wait_until("the host invites its first admin", Duration::from_secs(10), || {
        let log = server.log();
        let line = log.lines().find(|line| line.contains("auth register")).map(ToOwned::to_owned);
        token = line.and_then(|line| {
            let (_, rest) = line.split_once("--token ")?;
            Some(rest.split_whitespace().next()?.to_owned())
        });
        token.is_some()
    });
    token.unwrap()
}

#[track_caller]
fn invite(admin: &Person<'_>, arguments: &[&str]) -> String {
    admin.kr(&[&["auth", "invite"], arguments].concat()).ok().trim().to_owned()
}

#[test]
fn a_users_wish_waits_for_an_operator_and_what_they_share_can_be_taken_back() {
    let mut site = Site::new();
    let server = site.up_with(&["--auth"]);
    let site = site;
    let (root, olga) = (Person::new(&site, "root"), Person::new(&site, "olga"));
    let (ann, bob) = (Person::new(&site, "ann"), Person::new(&site, "bob"));

    ann.kr(&["vps", "list"]).fails(1, &["auth login"]);
    ann.kr(&["auth", "whoami"]).fails(1, &["not logged in", "auth login"]);
    root.register(&first_invitation(&server));
    assert_eq!(root.json(&["auth", "whoami"])["role"], "admin");
    olga.register(&invite(&root, &["--role", "operator"]));
    olga.kr(&["auth", "invite"]).fails(1, &["viewers only", "admin"]);
    let two = invite(&root, &["--uses", "2", "--expires", "1d"]);
    ann.register(&two);
    bob.register(&two);
    let spent = ["auth", "register", "--token", &two, "--username", "eve", "--password-stdin"];
    let spent = run_with_input(&mut ann.command(&spent), PASSWORD.as_bytes());
    spent.fails(1, &["invit"]);

    // A user asks, and is told how to follow it.
    let asked = ann.kr(&["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX, "-c", "1"]);
    assert!(asked.stderr.contains("vps status web --watch"), "{asked:?}");
    assert!(asked.ok().contains("waits for an operator"));
    assert_eq!(ann.status("web"), "pending_approval");
    bob.kr(&["vps", "status", "web"]).fails(1, &["there is no VPS"]);
    ann.kr(&["approval", "list"]).fails(1, &["operator"]);
    let waiting = olga.kr(&["approval", "list"]).ok();
    assert!(waiting.contains("web") && waiting.contains("ann"), "{waiting}");
    // A name may be another request by now: it is asked about, or named with what was read.
    olga.kr(&["approval", "approve", "web"]).fails(1, &["1 cores", "--yes"]);
    let shown = olga.json(&["approval", "show", "web.ann"]);
    let revision = shown["approval_revision"].as_str().unwrap();
    let other = ["approval", "approve", "web", "--revision", "0123456789abcdef"];
    olga.kr(&other).fails(1, &["changed since it was displayed", "approval show"]);
    olga.kr(&["approval", "approve", "web", "--revision", revision]).ok();
    wait_until("it runs", Duration::from_secs(30), || ann.status("web") == "running");
    let enter =
        |person: &Person<'_>, vps| person.kr(&["terminal", "exec", vps, "--", "echo", "inside"]);
    assert_eq!(enter(&ann, "web").ok(), "inside\n");
    enter(&olga, "web").fails(1, &[]);

    // What is refused says why.
    ann.kr(&["vps", "create", "--name", "huge", "--image", BUSYBOX, "-c", "1"]).ok();
    olga.kr(&["approval", "reject", "huge", "--reason", "one is enough"]).ok();
    let refused = ann.kr(&["vps", "status", "huge"]).ok();
    assert!(refused.contains("rejected") && refused.contains("one is enough"), "{refused}");

    // Shares come and go.
    ann.kr(&["vps", "share", "web", "--with", "bob", "--level", "view"]).ok();
    assert_eq!(bob.status("web.ann"), "running");
    enter(&bob, "web.ann").fails(1, &[]);
    ann.kr(&["vps", "assign", "web", "bob"]).ok();
    assert_eq!(enter(&bob, "web.ann").ok(), "inside\n");
    // It opens at once, and is in bob's lists and settings when he takes it.
    let config = |person: &Person<'_>| person.kr(&["ssh", "config"]).ok();
    let list = bob.kr(&["vps", "list"]);
    assert!(list.stderr.contains("1 share (`kohakuriver vps shares`)"), "{list:?}");
    assert!(!list.ok().contains("web") && !config(&bob).contains("web"));
    assert!(bob.kr(&["vps", "shares"]).ok().contains("web.ann"));
    assert!(bob.kr(&["vps", "shares", "take", "web.ann"]).ok().contains("in your lists"));
    assert!(bob.kr(&["vps", "list"]).ok().contains("web.ann"));
    assert!(config(&bob).contains(" web.ann\n") && config(&ann).contains(" web\n"));
    assert!(!config(&olga).contains("web"), "an operator has no business in it");
    bob.kr(&["vps", "shares", "take", "web.ann", "--as", "anns"]).ok();
    assert_eq!(enter(&bob, "anns").ok(), "inside\n");
    bob.kr(&["vps", "status", "web"]).fails(1, &["there is no VPS"]);
    let shown = ann.kr(&["vps", "status", "web"]).ok();
    assert!(shown.contains("bob (to use)"), "{shown}");
    let inside = bob.command(&["terminal", "exec", "anns", "--", "sleep", "600"]);
    let mut inside = Server::start(&mut { inside });
    std::thread::sleep(Duration::from_millis(500));
    ann.kr(&["vps", "unshare", "web", "--with", "bob"]).ok();
    let begun = std::time::Instant::now();
    assert_ne!(inside.wait(), 0, "what the share had opened has ended");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    bob.kr(&["vps", "status", "web.ann"]).fails(1, &["there is no VPS"]);
    ann.kr(&["vps", "give", "web", "bob", "--yes"]).ok();
    enter(&bob, "web.ann").fails(1, &["there is no VPS"]);
    assert!(ann.kr(&["vps", "status", "web"]).ok().contains("bob"), "whom it is offered to");
    ann.kr(&["vps", "give", "web", "--withdraw"]).ok();
    bob.kr(&["vps", "offers", "take", "web.ann"]).fails(1, &["no such offer"]);
    ann.kr(&["vps", "give", "web", "bob", "--yes"]).ok();
    assert!(bob.kr(&["vps", "offers"]).ok().contains("web.ann"));
    bob.kr(&["vps", "offers", "take", "web.ann"]).ok();
    assert_eq!(enter(&bob, "web").ok(), "inside\n");

    // The log has all of it, and nobody's secrets.
    let log = root.json(&["audit", "list", "--limit", "1000"]);
    let actions: Vec<&str> =
        log.as_array().unwrap().iter().filter_map(|entry| entry["action"].as_str()).collect();
    for action in ["auth.register", "vps.approve", "vps.reject", "vps.share", "vps.give"] {
        assert!(actions.contains(&action), "{action}: {actions:?}");
    }
    ann.kr(&["audit", "list"]).fails(1, &["admin"]);
    assert!(root.kr(&["audit", "verify"]).ok().contains("intact"));
    let export = site.path().join("log.ndjson");
    root.kr(&["audit", "export", export.to_str().unwrap()]).ok();
    let export = fs::read_to_string(export).unwrap();
    assert!(export.lines().count() > 10 && !export.contains(PASSWORD) && !export.contains(&two));

    // Who is put out is out.
    root.kr(&["auth", "user", "disable", "bob", "--yes"]).ok();
    wait_until("bob is out", Duration::from_secs(10), || bob.kr(&["vps", "list"]).code == 1);
    root.kr(&["auth", "user", "enable", "bob"]).ok();
    root.kr(&["vps", "delete", "web", "--force", "--yes"]).ok();
    drop(server);
}

#[test]
fn full_disk_of_the_host_lets_people_log_in_and_read() {
    let mut site = Site::new();
    let disk = SmallDisk::mount(site.data_dir(), 12);
    let server = site.host_with(&["--auth"]);
    let root = Person::new(&site, "root");
    root.register(&first_invitation(&server));
    let token = root.kr(&["auth", "token", "create", "unused"]).ok();
    disk.fill();

    // A token's first use is noted, which must not be what refuses it.
    let by_token = || run(root.command(&["vps", "list"]).env("KOHAKURIVER_TOKEN", token.trim()));
    for _ in 0..3 {
        by_token().ok();
    }
    let login = ["auth", "login", "--username", "root", "--password-stdin"];
    run_with_input(&mut root.command(&login), PASSWORD.as_bytes()).ok();
    assert_eq!(root.json(&["auth", "whoami"])["role"], "admin");

    disk.free();
    root.kr(&["audit", "verify"]).ok();
    server.kill();
    drop(disk);
}

#[test]
fn a_log_in_over_tls_is_kept_privately_and_ends_with_the_log_out() {
    let mut site = Site::new();
    let server = site.host_auth_https();
    let site = site;
    let (root, ann) = (Person::new(&site, "root"), Person::new(&site, "ann"));
    let url = format!("https://127.0.0.1:{}", site.port());
    let invitation = first_invitation(&server);

    // A stranger's CA is not believed, whatever is asked for.
    root.kr(&["auth", "whoami"]).fails(3, &["fingerprint", "auth login"]);
    let wrong = "0".repeat(64);
    root.kr(&["auth", "login", &url, "--fingerprint", &wrong]).fails(3, &["another one"]);
    // Asked at a terminal, which shows no password.
    let arguments = ["auth", "register", &url, "--token", &invitation, "--username", "root"];
    let mut terminal = Terminal::start(&root.command(&arguments));
    terminal.wait_for("[y/N]");
    terminal.type_in("y\n");
    terminal.wait_for("Password you want");
    terminal.type_in(&format!("{PASSWORD}\n"));
    terminal.wait_for("the same again");
    terminal.type_in(&format!("{PASSWORD}\n"));
    assert_eq!(terminal.wait(), 0, "{}", terminal.shown());
    assert!(!terminal.shown().contains(PASSWORD), "{}", terminal.shown());
    let mode = fs::metadata(root.config("credentials.toml")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let written = fs::read_to_string(root.config("config.toml")).unwrap();
    assert_eq!(written, format!("host = \"{url}\"\n"));
    assert!(root.by_file(&["auth", "whoami"]).ok().contains("admin"));

    // One token for each log-in, and none left behind.
    let login = ["auth", "login", "--username", "root", "--password-stdin"];
    run_with_input(&mut root.command(&login), b"wrong password").fails(1, &["wrong"]);
    run_with_input(&mut root.command(&login), PASSWORD.as_bytes()).ok();
    assert_eq!(root.json(&["auth", "token", "list"]).as_array().unwrap().len(), 1);
    let token = root.kr(&["auth", "token", "create", "backup", "--role", "viewer"]).ok();
    let as_viewer = run(ann.command(&["auth", "whoami"]).env("KOHAKURIVER_TOKEN", token.trim()));
    as_viewer.fails(3, &["fingerprint"]);
    let fingerprint = first_fingerprint(&server);
    let by_token = ["auth", "login", &url, "--fingerprint", &fingerprint, "--token-stdin"];
    run_with_input(&mut ann.command(&by_token), token.as_bytes()).ok();
    assert_eq!(ann.json(&["auth", "whoami"])["role"], "viewer");
    ann.kr(&["auth", "users"]).fails(1, &["operator"]);
    root.kr(&["auth", "token", "revoke", "backup"]).ok();
    wait_until("the token is nothing", Duration::from_secs(8), || {
        ann.kr(&["auth", "whoami"]).code == 1
    });

    // This machine's token ends, a key does not: it takes the password.
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "laptop", "-f"])
        .arg(root.home().join("key"))
        .status();
    assert!(made.unwrap().success());
    let public = root.home().join("key.pub");
    let add = ["auth", "key", "add", public.to_str().unwrap()];
    root.kr(&add).fails(2, &["--password-stdin"]);
    let add = [&add[..], &["--password-stdin"]].concat();
    run_with_input(&mut root.command(&add), b"wrong password").fails(1, &["wrong"]);
    run_with_input(&mut root.command(&add), PASSWORD.as_bytes()).ok();
    assert_eq!(root.json(&["auth", "key", "list"])[0]["comment"], "laptop");

    // Passwords are changed, and reset by an admin.
    let passwd = ["auth", "passwd", "--password-stdin"];
    let both = format!("{PASSWORD}\nbattery staple\n");
    run_with_input(&mut root.command(&passwd), both.as_bytes()).ok();
    run_with_input(&mut root.command(&login), PASSWORD.as_bytes()).fails(1, &["wrong"]);
    assert_eq!(root.json(&["auth", "key", "list"]).as_array().unwrap().len(), 1);
    root.kr(&["auth", "token", "create", "forgotten"]).ok();
    let passwd = ["auth", "passwd", "--password-stdin", "--end-tokens"];
    let both = "battery staple\nanother staple\n";
    run_with_input(&mut root.command(&passwd), both.as_bytes()).ok();
    assert_eq!(root.json(&["auth", "key", "list"]).as_array().unwrap().len(), 0);
    let tokens = root.json(&["auth", "token", "list"]);
    assert_eq!(tokens.as_array().unwrap().len(), 1, "this machine's new one: {tokens}");
    let reset = root.kr(&["auth", "user", "reset", "root"]).ok();
    let reset = ["auth", "reset", "--token", reset.trim(), "--password-stdin"];
    run_with_input(&mut root.command(&reset), PASSWORD.as_bytes()).ok();

    // Groups and quotas.
    root.kr(&["auth", "group", "create", "lab"]).ok();
    root.kr(&["auth", "group", "add", "lab", "root"]).ok();
    root.kr(&["auth", "group", "quota", "lab", "--cores", "64", "--memory", "256G"]).ok();
    let rule = ["auth", "group", "auto-approve", "lab", "--instances", "1", "--cores", "4"];
    assert!(root.kr(&rule).ok().contains("1 VPS, 4 cores"));
    root.kr(&["auth", "quota", "root", "--gpus", "2"]).ok();
    let quota = root.kr(&["auth", "quota"]).ok();
    assert!(quota.contains("group lab") && quota.contains("256G"), "{quota}");
    root.kr(&["auth", "quota", "root", "--gpus", "none"]).ok();
    assert_eq!(root.json(&["auth", "quota", "root"])["quota"]["gpus"], Value::Null);

    // The doctor finds what is unsafe.
    let data = site.data_dir();
    let doctor = ["doctor", "--data-dir", data.to_str().unwrap()];
    let found = root.kr(&doctor);
    assert_eq!(found.code, 0, "{found:?}");
    for part in ["pinned", "everybody has to log in", "none changed", "safe from others"] {
        assert!(found.stdout.contains(part), "{part}: {found:?}");
    }
    let secrets = root.config("credentials.toml");
    fs::set_permissions(&secrets, fs::Permissions::from_mode(0o644)).unwrap();
    let found = root.kr(&doctor);
    assert!(found.code == 1 && found.stdout.contains("chmod 600"), "{found:?}");
    fs::set_permissions(&secrets, fs::Permissions::from_mode(0o600)).unwrap();

    root.kr(&["auth", "logout"]).ok();
    root.kr(&["auth", "whoami"]).fails(1, &["not logged in"]);
    assert!(!fs::read_to_string(secrets).unwrap().contains("token"));
    drop(server);
}

fn first_fingerprint(server: &Server) -> String {
    let log = server.log();
    let word = log.split(|c: char| !c.is_ascii_hexdigit()).find(|word| word.len() == 64);
    word.unwrap_or_else(|| panic!("no fingerprint in {log}")).to_owned()
}

#[test]
fn a_person_logs_in_by_the_browser_where_the_lab_has_a_provider() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let provider = runtime.block_on(OidcProvider::start()).unwrap();
    provider.be("s-1", "ann", &["lab"]);
    let mut site = Site::new();
    let url = format!("http://127.0.0.1:{}", site.port());
    let secret = site.path().join("secret");
    fs::write(&secret, CLIENT_SECRET).unwrap();
    let flags = ["--oidc-issuer", &provider.issuer, "--oidc-client-id", "river"];
    let more = ["--oidc-role", "lab=user", "--public-url", &url, "--oidc-client-secret-file"];
    let all = [&["--auth"], &flags[..], &more[..], &[secret.to_str().unwrap()]].concat();
    let _server = site.up_with(&all);
    let ann = Person::new(&site, "ann");
    by_browser(&runtime, &ann, &["auth", "login"]).ok();
    assert!(ann.kr(&["auth", "whoami"]).ok().contains("ann"));
    let refused = ann.kr(&["auth", "users"]);
    assert_eq!(refused.code, 1);

    // A key lasts, so it takes the browser once more, as the same person.
    let key = format!("{}.pub", site.make_key("laptop").display());
    let add = ["auth", "key", "add", &key];
    assert!(by_browser(&runtime, &ann, &add).ok().contains("SHA256:"));
    assert_eq!(keys(&ann), 1);
    provider.be("s-2", "eve", &["lab"]);
    let other = format!("{}.pub", site.make_key("other").display());
    let refused = by_browser(&runtime, &ann, &["auth", "key", "add", &other]);
    refused.fails(1, &["the browser is logged in as eve, and you are ann"]);
    assert_eq!(keys(&ann), 1);
}

fn keys(person: &Person) -> usize {
    let listed = person.kr(&["auth", "key", "list", "--json"]).ok();
    serde_json::from_str::<Value>(&listed).unwrap().as_array().unwrap().len()
}

/// Runs a command that waits for a browser, and is that browser.
fn by_browser(runtime: &Runtime, person: &Person, arguments: &[&str]) -> Output {
    let mut command = person.command(&[arguments, &["--browser"]].concat());
    let mut waiting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(waiting.stderr.take().unwrap()).lines();
    let mut seen = Vec::new();
    let link = told.find_map(|line| {
        seen.push(line.unwrap());
        seen.last().map(|line| line.trim().to_owned()).filter(|line| line.starts_with("http"))
    });
    let link = link.unwrap_or_else(|| panic!("no link in {seen:?}"));
    let code = told.find_map(|line| {
        let line = line.unwrap();
        line.split_once("shows this code: ").map(|(_, code)| code.to_owned())
    });
    let code = code.expect("a code to compare");
    runtime.block_on(async {
        let mut browser = Browser::new().unwrap();
        let callback = browser.go(&link).await.unwrap();
        let (_, page) = browser.open(&callback).await.unwrap();
        let host = link.split("/api/").next().unwrap();
        let page = format!("{host}{page}");
        let (_, html) = browser.open(&page).await.unwrap();
        assert!(html.contains(&code), "{code} in {html}");
        let (_, back) = browser.press(&page, Some(host)).await.unwrap();
        assert!(
            !browser.cookies.contains_key("kohakuriver_session"),
            "the session is not the browser's"
        );
        // Whoever else knows the port gets nothing and spoils nothing.
        let other = back.split('?').next().unwrap();
        assert_eq!(browser.open(other).await.unwrap().0, 404);
        assert_eq!(browser.open(&back).await.unwrap().0, 200);
    });
    let stderr = told.map(|line| line.unwrap() + "\n").collect();
    let output = waiting.wait_with_output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    Output { code: output.status.code().unwrap_or(-1), stdout, stderr }
}
