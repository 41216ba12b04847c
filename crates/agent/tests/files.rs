//! File transfer with OpenSSH's `scp` and `sftp`.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

#[path = "support/instance.rs"]
mod support;

use std::os::unix::fs::PermissionsExt;

use support::{Instance, noise, text};

#[test]
fn scp_copies_a_large_file_both_ways_with_mode_and_time() {
    let instance = Instance::start();
    let data = noise(20_000_000);
    let (source, there, back) =
        (instance.path("source"), instance.path("there"), instance.path("back"));
    std::fs::write(&source, &data).unwrap();
    std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o640)).unwrap();
    let remote = format!("root@127.0.0.1:{}", there.display());
    let up = instance.copier("scp").args(["-q", "-p"]).arg(&source).arg(&remote).status();
    assert!(up.unwrap().success());
    let down = instance.copier("scp").args(["-q", "-p"]).arg(&remote).arg(&back).status();
    assert!(down.unwrap().success());
    assert!(std::fs::read(&back).unwrap() == data);
    let (first, last) = (std::fs::metadata(&source).unwrap(), std::fs::metadata(&back).unwrap());
    assert_eq!(first.permissions(), last.permissions());
    let seconds = |meta: &std::fs::Metadata| {
        meta.modified().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
    };
    assert_eq!(seconds(&first), seconds(&last));
}

#[test]
fn scp_copies_a_tree_both_ways() {
    let instance = Instance::start();
    let tree = instance.path("tree");
    std::fs::create_dir_all(tree.join("a/b")).unwrap();
    for n in 0..250 {
        std::fs::write(tree.join(format!("a/b/file {n}")), format!("{n}")).unwrap();
    }
    std::fs::write(tree.join("empty"), "").unwrap();
    let remote = format!("root@127.0.0.1:{}", instance.path("remote").display());
    let up = instance.copier("scp").args(["-q", "-r"]).arg(&tree).arg(&remote).status();
    assert!(up.unwrap().success());
    let down =
        instance.copier("scp").args(["-q", "-r"]).arg(&remote).arg(instance.path("copy")).status();
    assert!(down.unwrap().success());
    let same =
        std::process::Command::new("diff").arg("-r").args([tree, instance.path("copy")]).status();
    assert!(same.unwrap().success());
}

#[test]
fn sftp_commands_do_what_they_say() {
    let instance = Instance::start();
    let base = instance.path("base");
    std::fs::create_dir(&base).unwrap();
    std::fs::write(instance.path("local"), "content").unwrap();
    let batch = format!(
        "cd {base}\nmkdir d\nput {local} d/one\nrename d/one d/two\nln -s two d/link\nln d/two d/hard\n\
         chmod 600 d/two\nls -la d\nget d/link {back}\nrm d/link\nrm d/hard\npwd\n",
        base = base.display(),
        local = instance.path("local").display(),
        back = instance.path("back").display(),
    );
    let output = instance.sftp("root", &batch);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(std::fs::read_to_string(instance.path("back")).unwrap(), "content");
    assert_eq!(std::fs::read_to_string(base.join("d/two")).unwrap(), "content");
    let listing = text(&output.stdout);
    assert!(listing.contains("lrwxrwxrwx") && listing.contains("-rw-------"), "{listing}");
    let cleanup = format!("rm {0}/d/two\nrmdir {0}/d\n", base.display());
    assert!(instance.sftp("root", &cleanup).status.success());
    assert_eq!(std::fs::read_dir(&base).unwrap().count(), 0);
}

#[test]
fn a_missing_file_and_a_rename_onto_another_are_errors() {
    let instance = Instance::start();
    let output = instance.sftp("root", "get /no/such/file /tmp/x\n");
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("not found"), "{}", text(&output.stderr));
}

#[test]
fn files_are_served_with_the_rights_of_the_user_who_logged_in() {
    let instance = Instance::start();
    let secret = instance.path("secret");
    std::fs::write(&secret, "root's").unwrap();
    std::fs::set_permissions(instance.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let open = instance.path("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    let stolen = instance.path("stolen");
    let output =
        instance.sftp("nobody", &format!("get {} {}\n", secret.display(), stolen.display()));
    assert!(!output.status.success() && !stolen.exists());
    std::fs::write(instance.path("mine"), "mine").unwrap();
    let put = format!("put {} {}/mine\n", instance.path("mine").display(), open.display());
    let output = instance.sftp("nobody", &put);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(open.join("mine")).unwrap());
    assert_ne!(owner, 0);
}

#[test]
fn what_openssh_adds_to_the_protocol_works() {
    let instance = Instance::start();
    let base = instance.path("base");
    std::fs::create_dir(&base).unwrap();
    std::fs::write(base.join("old"), "old").unwrap();
    std::fs::write(base.join("new"), "new").unwrap();
    let batch = format!(
        "cd {}\ndf .\nrename new old\ncp old copy\nln copy hard\nln -s target link\nchown -h 7 link\n\
         ls -l\n",
        base.display()
    );
    let output = instance.sftp("root", &batch);
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{shown}{}", text(&output.stderr));
    let read = |name: &str| std::fs::read_to_string(base.join(name)).unwrap();
    // Renamed onto another, which only the extension does.
    assert_eq!(
        (read("old"), read("copy"), read("hard")),
        ("new".into(), "new".into(), "new".into())
    );
    assert!(shown.contains("%Capacity"), "{shown}");
    assert!(shown.contains("root     root"), "owners have names: {shown}");
    let link = std::fs::symlink_metadata(base.join("link")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&link), 7);
    assert_eq!(std::fs::read_link(base.join("link")).unwrap(), std::path::Path::new("target"));
    for home in ["~", "~root"] {
        let remote = format!("root@127.0.0.1:{home}/..{}", base.join("old").display());
        let down =
            instance.copier("scp").arg("-q").arg(&remote).arg(instance.path("down")).status();
        assert!(down.unwrap().success(), "{home}");
    }
}

#[test]
fn a_name_that_is_not_utf_8_and_an_odd_one_are_files_like_others() {
    use std::os::unix::ffi::OsStrExt;
    let instance = Instance::start();
    let (tree, copy) = (instance.path("tree"), instance.path("copy"));
    std::fs::create_dir(&tree).unwrap();
    for name in [&b"caf\xe9"[..], b"a b", b"\"quoted\"", b"-dash", b"new\nline"] {
        std::fs::write(tree.join(std::ffi::OsStr::from_bytes(name)), name).unwrap();
    }
    let remote = format!("root@127.0.0.1:{}", tree.display());
    let down = instance.copier("scp").args(["-q", "-r"]).arg(&remote).arg(&copy).output().unwrap();
    assert!(down.status.success(), "{}", text(&down.stderr));
    let same = std::process::Command::new("diff").arg("-r").args([&tree, &copy]).status();
    assert!(same.unwrap().success());
}

#[test]
fn a_cut_transfer_goes_on_where_it_was() {
    let instance = Instance::start();
    let data = noise(3_000_000);
    let (there, here) = (instance.path("there"), instance.path("here"));
    std::fs::write(&there, &data).unwrap();
    std::fs::write(&here, &data[..1_000_000]).unwrap();
    let batch = format!("reget {} {}\n", there.display(), here.display());
    assert!(instance.sftp("root", &batch).status.success());
    assert!(std::fs::read(&here).unwrap() == data);
    std::fs::write(&there, &data[..2_000_000]).unwrap();
    let batch = format!("reput {} {}\n", here.display(), there.display());
    assert!(instance.sftp("root", &batch).status.success());
    assert!(std::fs::read(&there).unwrap() == data);
}

/// A file that others open in vain until this is dropped, as on a file server that is gone. (The kernel waits for 45
/// seconds for the holder of a lease.)
struct Stuck {
    _file: std::fs::File,
}

impl Stuck {
    #[expect(unsafe_code, reason = "leases have no safe wrapper")]
    fn new(path: &std::path::Path) -> Self {
        use std::os::fd::AsRawFd;
        /// The kernel's number, which the crate lacks.
        const F_SETSIG: i32 = 10;
        let file = std::fs::File::create(path).unwrap();
        let number = file.as_raw_fd();
        // SAFETY: the calls take integers. The signal for us is one that is ignored where nobody waits for it.
        unsafe {
            assert_eq!(libc::fcntl(number, F_SETSIG, libc::SIGURG), 0);
            assert_eq!(libc::fcntl(number, libc::F_SETLEASE, libc::F_WRLCK), 0);
        }
        Self { _file: file }
    }
}

#[test]
fn a_file_that_is_stuck_holds_up_nothing_but_its_own_transfer() {
    let instance = Instance::start();
    let stuck = Stuck::new(&instance.path("stuck"));
    std::fs::write(instance.path("fine"), "fine").unwrap();
    let control = format!("ControlPath={}", instance.path("control").display());
    let mut master = instance.ssh(&["-N", "-M", "-o", &control], "").spawn().unwrap();
    support::wait_until("the connection stands", || instance.path("control").exists());
    let get = |name: &str| {
        let mut sftp = instance.copier("sftp");
        let batch = instance.path(&format!("batch-{name}"));
        let (from, to) = (instance.path(name), instance.path(&format!("{name}-copy")));
        std::fs::write(&batch, format!("get {} {}\n", from.display(), to.display())).unwrap();
        sftp.args(["-o", &control, "-b"]).arg(batch).arg("root@127.0.0.1");
        sftp
    };
    let mut waiting = get("stuck").spawn().unwrap();
    support::wait_until("the transfer has begun", || instance.path("batch-stuck").exists());
    std::thread::sleep(std::time::Duration::from_millis(500));
    for _ in 0..3 {
        let output = instance.ssh(&["-o", &control], "echo fine").output().unwrap();
        assert_eq!(text(&output.stdout), "fine\n");
        assert!(get("fine").status().unwrap().success(), "another transfer of the connection");
        assert!(instance.exec("true").status.success(), "another connection");
    }
    assert!(waiting.try_wait().unwrap().is_none(), "it was stuck all the time");
    drop(stuck);
    assert!(waiting.wait().unwrap().success());
    assert!(instance.path("stuck-copy").exists());
    master.kill().unwrap();
    master.wait().unwrap();
}

#[test]
fn a_named_pipe_is_no_file_and_nobody_waits_for_its_other_end() {
    let instance = Instance::start();
    let pipe = instance.path("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let output = instance.sftp("root", &format!("get {} /dev/null\n", pipe.display()));
    assert!(!output.status.success());
}

#[test]
fn garbage_ends_the_session_and_nothing_else() {
    let instance = Instance::start();
    let garbage = instance.path("garbage");
    std::fs::write(&garbage, noise(100_000)).unwrap();
    let output = instance
        .ssh(&["-s"], "sftp")
        .stdin(std::fs::File::open(&garbage).unwrap())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(instance.exec("true").status.success());
}
