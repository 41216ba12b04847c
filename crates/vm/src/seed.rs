//! What a guest is told at boot, as small disks: the NoCloud seed that cloud-init reads, and the
//! disk that carries our executable.
//!
//! ```text
//!  CIDATA   meta-data  user-data  network-config  vendor-data     for cloud-init
//!           kohakuriver/<settings of the agent>                   for the agent
//!           kohakuriver/install.sh, kohakuriver-agent.service     for guests without our unit
//!  KRAGENT  kohakuriver                                           one for all machines of a node
//! ```
//!
//! Written anew at each start, so a guest that boots has the settings of that day. The format is
//! FAT, which every Linux guest reads; cloud-init knows the label. What is said to cloud-init is
//! JSON, which is YAML, so nothing in it can become more than the value it is.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use serde_json::json;

/// The program's name on its disk.
pub const AGENT_PROGRAM: &str = "kohakuriver";
/// Where the agent's settings are on the seed.
pub const SETTINGS_DIR: &str = "kohakuriver";

const SEED_LABEL: [u8; 11] = *b"CIDATA     ";
const AGENT_LABEL: [u8; 11] = *b"KRAGENT    ";
/// Room for the files of a seed; what is not written takes no space on the node's disk.
const SEED_BYTES: u64 = 2 << 20;
const INSTALL: &str = include_str!("seed/install.sh");
/// The agent as a service of systemd, for images that have it built in and for those that get it.
pub const UNIT: &str = include_str!("seed/kohakuriver-agent.service");
pub const UNIT_NAME: &str = "kohakuriver-agent.service";

/// What one guest is told.
#[derive(Clone, Debug, Default)]
pub struct Seed {
    /// Whoever knows it by another id is another machine: cloud-init then begins anew.
    pub instance_id: String,
    pub hostname: String,
    /// Lines of `authorized_keys` for the image's own user and for root.
    pub authorized_keys: Vec<String>,
    /// Version 2 of cloud-init's network configuration.
    pub network_config: String,
    /// Names and contents, for the agent.
    pub settings: Vec<(String, Vec<u8>)>,
}

impl Seed {
    /// Writes the seed's disk.
    ///
    /// # Errors
    /// The file cannot be written, or the settings do not fit (2 MiB).
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut files = vec![
            ("meta-data".to_owned(), self.meta_data().into_bytes()),
            ("user-data".to_owned(), self.user_data().into_bytes()),
            ("network-config".to_owned(), self.network_config.clone().into_bytes()),
            // Asked for again and again where it is missing.
            ("vendor-data".to_owned(), Vec::new()),
        ];
        let ours = |name: &str| format!("{SETTINGS_DIR}/{name}");
        files.push((ours("install.sh"), INSTALL.into()));
        files.push((ours(UNIT_NAME), UNIT.into()));
        files.extend(self.settings.iter().map(|(name, data)| (ours(name), data.clone())));
        let temporary = path.with_extension("new");
        let mut image = create(&temporary, SEED_BYTES)?;
        format(&mut image, SEED_LABEL)?;
        {
            let disk = FileSystem::new(&mut image, FsOptions::new())?;
            let root = disk.root_dir();
            root.create_dir(SETTINGS_DIR)?;
            for (name, data) in files {
                root.create_file(&name)?.write_all(&data)?;
            }
        }
        fs::rename(temporary, path)
    }

    fn meta_data(&self) -> String {
        // Two plain words: also guests that read it without a parser understand it.
        format!("instance-id: {}\nlocal-hostname: {}\n", self.instance_id, self.hostname)
    }

    fn user_data(&self) -> String {
        let mount = "mkdir -p /run/kohakuriver/seed && mount -t vfat -o ro LABEL=CIDATA \
            /run/kohakuriver/seed && sh /run/kohakuriver/seed/kohakuriver/install.sh; \
            umount /run/kohakuriver/seed";
        let config = json!({
            "hostname": self.hostname,
            "preserve_hostname": false,
            "ssh_pwauth": false,
            "disable_root": false,
            "ssh_authorized_keys": self.authorized_keys,
            "users": ["default", {
                "name": "root",
                "ssh_authorized_keys": self.authorized_keys,
            }],
            "growpart": {"mode": "auto", "devices": ["/"], "ignore_growroot_disabled": false},
            "resize_rootfs": true,
            "bootcmd": [["/bin/sh", "-c", mount]],
        });
        format!("#cloud-config\n{config:#}\n")
    }
}

/// Writes the disk with our executable.
///
/// # Errors
/// One of the files cannot be read or written.
pub fn write_agent_disk(executable: &Path, path: &Path) -> io::Result<()> {
    let mut program = File::open(executable)?;
    let about = program.metadata()?;
    // A sixteenth more is enough for the tables of any FAT.
    let bytes = (about.len() + about.len() / 16 + (4 << 20)).next_multiple_of(1 << 20);
    let temporary = path.with_extension("new");
    let mut image = create(&temporary, bytes)?;
    format(&mut image, AGENT_LABEL)?;
    {
        let disk = FileSystem::new(&mut image, FsOptions::new())?;
        let mut file = disk.root_dir().create_file(AGENT_PROGRAM)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match program.read(&mut buffer)? {
                0 => break,
                read => file.write_all(&buffer[..read])?,
            }
        }
    }
    fs::set_permissions(&temporary, std::os::unix::fs::PermissionsExt::from_mode(0o444))?;
    image.sync_all()?;
    fs::rename(temporary, path)
}

fn create(path: &Path, bytes: u64) -> io::Result<File> {
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.set_len(bytes)?;
    Ok(file)
}

fn format(image: &mut File, label: [u8; 11]) -> io::Result<()> {
    let serial = rand::random();
    let options = FormatVolumeOptions::new().volume_label(label).volume_id(serial);
    fatfs::format_volume(&mut *image, options)?;
    image.rewind()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn seed() -> Seed {
        Seed {
            instance_id: "7-1".to_owned(),
            hostname: "web".to_owned(),
            authorized_keys: vec!["ssh-ed25519 AAAA \"x: y\"\n- z".to_owned()],
            network_config: "version: 2\n".to_owned(),
            settings: vec![("agent.json".to_owned(), b"{}".to_vec())],
        }
    }

    fn read(path: &Path, name: &str) -> Vec<u8> {
        let image = io::Cursor::new(fs::read(path).unwrap());
        let disk = FileSystem::new(image, FsOptions::new()).unwrap();
        let mut data = Vec::new();
        disk.root_dir().open_file(name).unwrap().read_to_end(&mut data).unwrap();
        data
    }

    #[test]
    fn a_seed_holds_what_it_was_given_and_nothing_breaks_out_of_its_value() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed.img");
        seed().write(&path).unwrap();
        seed().write(&path).unwrap();
        assert_eq!(read(&path, "network-config"), b"version: 2\n");
        assert_eq!(read(&path, "vendor-data"), b"");
        assert_eq!(read(&path, "kohakuriver/agent.json"), b"{}");
        let user_data = String::from_utf8(read(&path, "user-data")).unwrap();
        let config = user_data.strip_prefix("#cloud-config\n").unwrap();
        let config: serde_json::Value = serde_json::from_str(config).unwrap();
        assert_eq!(config["ssh_authorized_keys"][0], seed().authorized_keys[0]);
    }

    #[test]
    fn other_programs_know_the_label_and_find_no_fault() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed.img");
        seed().write(&path).unwrap();
        let blkid = Command::new("blkid").args(["-o", "export"]).arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&blkid.stdout).into_owned();
        assert!(said.contains("LABEL=CIDATA") && said.contains("TYPE=vfat"), "{said}");
    }

    #[test]
    fn the_agents_disk_holds_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let (program, path) = (dir.path().join("p"), dir.path().join("agent.img"));
        let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
        fs::write(&program, &bytes).unwrap();
        write_agent_disk(&program, &path).unwrap();
        assert_eq!(read(&path, AGENT_PROGRAM), bytes);
    }
}
