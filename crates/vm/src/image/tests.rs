use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn name(text: &str) -> VmImageName {
    text.parse().unwrap()
}

fn quiet(_: &str, _: Option<u8>) {}

fn import(named: &str, source: &str) -> Import {
    Import {
        name: name(named),
        source: source.parse().unwrap(),
        sha256: None,
        firmware: Firmware::Bios,
        kernel: None,
        agent: true,
        replace: false,
    }
}

/// A disk that a machine could boot from, as far as one can tell from outside.
fn raw_disk(dir: &Path, content: u8) -> PathBuf {
    let path = dir.join(format!("{content}.raw"));
    let mut file = File::create(&path).unwrap();
    let mut sector = vec![content; 512];
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    file.write_all(&sector).unwrap();
    file.set_len(3 << 20).unwrap();
    path
}

fn qemu_img(args: &[&str]) {
    let status = std::process::Command::new("qemu-img").args(args).status().unwrap();
    assert!(status.success(), "{args:?}");
}

fn hidden(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.starts_with('.') && name != ".lock").collect()
}

#[tokio::test]
async fn every_format_becomes_an_image_with_the_same_content() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::new(dir.path().join("vm-images"));
    let raw = raw_disk(dir.path(), 7);
    let raw = raw.to_str().unwrap();
    for format in ["raw", "qcow2", "vmdk", "vhdx"] {
        let source = dir.path().join(format!("disk.{format}"));
        let source = source.to_str().unwrap();
        qemu_img(&["convert", "-q", "-f", "raw", "-O", format, raw, source]);
        import(format, source).run(&store, &quiet).await.unwrap();
        let image = store.get(&name(format)).unwrap();
        // VHDX has no smaller disks than its blocks.
        assert!(image.meta.virtual_bytes >= 3 << 20, "{format}");
        assert!(image.meta.agent && image.meta.kernel.is_none());
        assert_eq!(fs::metadata(&image.disk).unwrap().mode() & 0o777, 0o444);
        let back = dir.path().join("back.raw");
        let disk = image.disk.to_str().unwrap();
        qemu_img(&["convert", "-q", "-f", "qcow2", "-O", "raw", disk, back.to_str().unwrap()]);
        assert_eq!(fs::read(&back).unwrap()[..3 << 20], fs::read(raw).unwrap(), "{format}");
    }
    let names: Vec<_> = store.list().unwrap().images.into_iter().map(|image| image.name).collect();
    assert_eq!(names, ["qcow2", "raw", "vhdx", "vmdk"].map(name));
    assert_eq!(hidden(store.dir()), [""; 0]);
}

#[tokio::test]
async fn a_disk_that_would_read_other_files_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::new(dir.path().join("vm-images"));
    let path = |file: &str| dir.path().join(file).to_str().unwrap().to_owned();
    let raw = raw_disk(dir.path(), 1);
    let (backed, external, parts) = (path("b.qcow2"), path("e.qcow2"), path("p.vmdk"));
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", raw.to_str().unwrap(), &backed]);
    let option = format!("data_file={}", path("data"));
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &option, &external, "1M"]);
    qemu_img(&["create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", &parts, "1M"]);
    let (base, over) = (path("base.vmdk"), path("over.vmdk"));
    qemu_img(&["create", "-q", "-f", "vmdk", &base, "1M"]);
    qemu_img(&["create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", &base, &over]);
    for (source, word) in [
        (backed, "backing file"),
        (external, "another file"),
        (parts, "part"),
        (over, "backing file"),
    ] {
        let error = import("bad", &source).run(&store, &quiet).await.unwrap_err();
        assert!(error.to_string().contains(word), "{source}: {error}");
    }
    for (source, word) in [("/dev/zero", "not a file"), ("/no/such", "cannot read")] {
        let error = import("bad", source).run(&store, &quiet).await.unwrap_err();
        assert!(error.to_string().contains(word), "{source}: {error}");
    }
    assert!(store.list().unwrap().images.is_empty());
    assert_eq!(hidden(store.dir()), [""; 0]);
}

#[tokio::test]
async fn a_wrong_checksum_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::new(dir.path().join("vm-images"));
    let raw = raw_disk(dir.path(), 1);
    let right = space::checksum(&raw, "", &quiet).await.unwrap();
    let mut wanted = import("a", raw.to_str().unwrap());
    for (sum, word) in [("0".repeat(64), "not what was expected"), ("0".repeat(9), "64")] {
        wanted.sha256 = Some(sum);
        let error = wanted.run(&store, &quiet).await.unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
    wanted.sha256 = Some(right.to_uppercase());
    wanted.run(&store, &quiet).await.unwrap();
    assert_eq!(store.list().unwrap().images.len(), 1);
    assert_eq!(hidden(store.dir()), [""; 0]);
}

#[tokio::test]
async fn replacing_or_deleting_an_image_leaves_links_to_the_old_one_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::new(dir.path().join("vm-images"));
    let sources = [1, 2].map(|content| raw_disk(dir.path(), content));
    let wanted = import("a", sources[0].to_str().unwrap());
    wanted.run(&store, &quiet).await.unwrap();
    let old = store.get(&name("a")).unwrap();
    let link = dir.path().join("layer");
    fs::hard_link(&old.disk, &link).unwrap();

    let mut next = import("a", sources[1].to_str().unwrap());
    let error = next.run(&store, &quiet).await.unwrap_err();
    assert!(matches!(error, ImageError::Exists { .. }), "{error}");
    assert!(error.hint().unwrap().contains("--replace"));
    next.replace = true;
    next.run(&store, &quiet).await.unwrap();
    let new = store.get(&name("a")).unwrap();
    assert_ne!(new.meta.sha256, old.meta.sha256);
    assert_eq!(space::checksum(&link, "", &quiet).await.unwrap(), old.meta.sha256);

    store.delete(&name("a")).unwrap();
    assert!(matches!(store.get(&name("a")), Err(ImageError::Unknown { .. })));
    assert_eq!(space::checksum(&link, "", &quiet).await.unwrap(), old.meta.sha256);
    assert_eq!(hidden(store.dir()), [""; 0]);
}

#[tokio::test]
async fn damaged_images_are_told_apart_from_absent_ones_and_can_be_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::new(dir.path());
    let source = raw_disk(dir.path(), 1);
    let error = store.get(&name("a")).unwrap_err();
    assert_eq!(error.to_string(), "there is no VM image 'a'; there is none at all yet");
    assert_eq!(error.hint().unwrap(), "make it: kohakuriver qemu image create --name a");
    for broken in ["a", "b", "c"] {
        import(broken, source.to_str().unwrap()).run(&store, &quiet).await.unwrap();
    }
    let file = |image: &str, file: &str| dir.path().join(image).join(file);
    fs::remove_file(file("a", META_FILE)).unwrap();
    let shorter = fs::read(file("b", DISK_FILE)).unwrap();
    fs::remove_file(file("b", DISK_FILE)).unwrap();
    fs::write(file("b", DISK_FILE), &shorter[1..]).unwrap();
    fs::remove_file(file("c", META_FILE)).unwrap();
    fs::write(file("c", META_FILE), "{").unwrap();
    for (broken, word) in [("a", META_FILE), ("b", "bytes"), ("c", META_FILE)] {
        let error = store.get(&name(broken)).unwrap_err();
        assert!(matches!(error, ImageError::Broken { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    let listing = store.list().unwrap();
    assert_eq!((listing.images.len(), listing.broken.len()), (0, 3));
    for broken in ["a", "b", "c"] {
        store.delete(&name(broken)).unwrap();
    }
    assert!(store.list().unwrap().broken.is_empty());
}

#[tokio::test]
async fn what_is_given_up_in_the_middle_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::new(dir.path().join("vm-images"));
    let (address, server) =
        serve(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\nQFI".to_vec()).await;
    let mut wanted = import("a", &format!("http://{address}/a.qcow2"));
    wanted.sha256 = Some("0".repeat(64));
    let begun = std::sync::atomic::AtomicBool::new(false);
    let report = |_: &str, _: Option<u8>| begun.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut running = Box::pin(wanted.run(&store, &report));
    while !begun.load(std::sync::atomic::Ordering::Relaxed) {
        tokio::select! {
            outcome = &mut running => panic!("{outcome:?}"),
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
    }
    assert_eq!(hidden(store.dir()).len(), 1);
    drop(running);
    assert_eq!(hidden(store.dir()), [""; 0]);
    server.abort();
}

#[tokio::test]
async fn downloads_are_checked_and_never_taken_in_the_clear_unchecked() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::new(dir.path().join("vm-images"));
    let body = fs::read(raw_disk(dir.path(), 9)).unwrap();
    let mut answer =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
    answer.extend(&body);
    let (address, server) = serve(answer).await;
    let mut wanted = import("a", &format!("http://{address}/a.raw"));
    let error = wanted.run(&store, &quiet).await.unwrap_err();
    assert!(matches!(error, ImageError::NoChecksum { .. }), "{error}");
    wanted.sha256 = Some("1".repeat(64));
    let error = wanted.run(&store, &quiet).await.unwrap_err();
    assert!(matches!(error, ImageError::Checksum { .. }), "{error}");
    let raw = dir.path().join("9.raw");
    wanted.sha256 = Some(space::checksum(&raw, "", &quiet).await.unwrap());
    wanted.run(&store, &quiet).await.unwrap();
    assert_eq!(store.get(&name("a")).unwrap().meta.source, format!("http://{address}/a.raw"));
    server.abort();

    let (address, server) = serve(b"HTTP/1.1 404 Not Found\r\n\r\n".to_vec()).await;
    let mut wanted = import("b", &format!("http://{address}/b"));
    wanted.sha256 = Some("1".repeat(64));
    let error = wanted.run(&store, &quiet).await.unwrap_err();
    assert!(error.to_string().contains("404"), "{error}");
    server.abort();
    assert_eq!(hidden(store.dir()), [""; 0]);
}

#[test]
fn only_files_and_http_are_sources() {
    assert_eq!("a/b.img".parse(), Ok(Source::File(PathBuf::from("a/b.img"))));
    assert_eq!("HTTPS://x/y".parse(), Ok(Source::Url("HTTPS://x/y".to_owned())));
    for bad in ["nbd://x/y", "ftp://x", "file:///etc/passwd"] {
        assert!(bad.parse::<Source>().is_err(), "{bad}");
    }
}

/// Gives this answer to whoever asks, and keeps the connection open.
async fn serve(answer: Vec<u8>) -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(&answer).await;
            open.push(stream);
        }
    });
    (address, task)
}
