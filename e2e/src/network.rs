//! Machines on one machine: network namespaces on a switch, whose cables can be pulled.

use std::process::Command;

use crate::process::run;

/// A switch and the machines on it, `10.97.0.1` and up. Dropping it removes all of it.
#[derive(Debug)]
pub struct Network {
    prefix: String,
    names: Vec<String>,
}

impl Network {
    /// Builds a switch with these machines, in order of their addresses.
    pub fn new(names: &[&str]) -> Self {
        // Short: an interface's name holds fifteen characters.
        let prefix = format!("kr{}", std::process::id() % 100_000);
        let network = Self { prefix, names: names.iter().map(ToString::to_string).collect() };
        let switch = network.namespace("sw");
        ip(&["netns", "add", &switch]);
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &switch, "link", "set", "br0", "up"]);
        for (index, name) in names.iter().enumerate() {
            let space = network.namespace(name);
            let (outer, inner) = (format!("p-{name}"), "eth0");
            ip(&["netns", "add", &space]);
            ip(&[
                "-n", &switch, "link", "add", &outer, "type", "veth", "peer", "name", inner,
                "netns", &space,
            ]);
            ip(&["-n", &switch, "link", "set", &outer, "master", "br0", "up"]);
            let address = format!("{}/24", network.address(name));
            ip(&["-n", &space, "addr", "add", &address, "dev", inner]);
            ip(&["-n", &space, "link", "set", inner, "up"]);
            ip(&["-n", &space, "link", "set", "lo", "up"]);
            assert!(index < 200, "addresses end somewhere");
        }
        network
    }

    pub fn address(&self, name: &str) -> String {
        let index = self.names.iter().position(|known| known == name);
        format!("10.97.0.{}", index.expect("a machine of this network") + 1)
    }

    /// A command that runs on one of the machines. `ip netns exec` would hide the control groups.
    pub fn command(&self, name: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace(name))).arg(program);
        command
    }

    /// Pulls a machine's cable.
    pub fn cut(&self, name: &str) {
        ip(&["-n", &self.namespace("sw"), "link", "set", &format!("p-{name}"), "down"]);
    }

    pub fn mend(&self, name: &str) {
        ip(&["-n", &self.namespace("sw"), "link", "set", &format!("p-{name}"), "up"]);
    }

    /// Names of the network devices that one of the machines has.
    pub fn devices(&self, name: &str) -> Vec<String> {
        let space = self.namespace(name);
        let list = run(Command::new("ip").args(["-n", &space, "-brief", "link"])).ok();
        let words = list.lines().filter_map(|line| line.split_whitespace().next());
        // A pair's end has the other's number behind its name.
        words.filter_map(|word| word.split('@').next()).map(ToOwned::to_owned).collect()
    }

    /// Removes a device of one of the machines, if it is there.
    pub fn remove_device(&self, name: &str, device: &str) {
        let space = self.namespace(name);
        let _ = run(Command::new("ip").args(["-n", &space, "link", "del", device]));
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.names.iter().map(String::as_str).chain(["sw"]) {
            let _ = run(Command::new("ip").args(["netns", "delete", &self.namespace(name)]));
        }
    }
}

fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments)).ok();
}

/// Every address of this machine but loopback's, both families.
pub fn node_addresses() -> Vec<String> {
    let text = run(Command::new("ip").args(["-o", "addr", "show"])).ok();
    let address = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip_while(|word| !word.starts_with("inet"));
        Some(words.nth(1)?.split('/').next()?.to_owned())
    };
    text.lines().filter_map(address).filter(|address| !address.starts_with("127.")).collect()
}
