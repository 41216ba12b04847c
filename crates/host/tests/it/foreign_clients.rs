//! SSH clients of the gateway that lack what OpenSSH has.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use anyhow::Result;
use kohakuriver_testkit::TestHost;

#[path = "../../../agent/tests/support/raw_ssh.rs"]
mod raw_ssh;

use raw_ssh::{CIPHERS, HOST_KEYS, KEX, kexinit, lists, read_name, receive, send};

/// Returns the gateway's offer to a client of this name that offers these host keys and ciphers.
async fn offer(
    address: SocketAddr,
    name: &'static str,
    own: Option<(&'static str, &'static str)>,
) -> Result<Vec<Vec<String>>> {
    let asked = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "{name}\r\n").unwrap();
        read_name(&mut stream);
        if let Some((keys, ciphers)) = own {
            send(&mut stream, &kexinit("curve25519-sha256", keys, ciphers, "hmac-sha2-256"));
        }
        lists(&receive(&mut stream).unwrap())
    });
    Ok(asked.await?)
}

const OPENSSH: &str = "SSH-2.0-OpenSSH_9.2";
const OTHER: &str = "SSH-2.0-paramiko_4.0.0";

#[tokio::test]
async fn gateway_offers_algorithms_of_each_client() -> Result<()> {
    let host = TestHost::start().await?;
    let address = host.host.ssh_address();
    let default = Some((
        "ecdsa-sha2-nistp256,ssh-ed25519",
        "chacha20-poly1305@openssh.com,aes128-gcm@openssh.com",
    ));
    let lists = offer(address, OPENSSH, default).await?;
    assert_eq!(lists[CIPHERS], ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"]);
    assert_eq!(lists[HOST_KEYS], ["ssh-ed25519"]);
    assert!(lists[KEX].iter().any(|kex| kex == "kex-strict-s-v00@openssh.com"));
    for name in [OPENSSH, OTHER] {
        let lacking =
            Some(("ecdsa-sha2-nistp256,ssh-rsa", "chacha20-poly1305@openssh.com,aes128-ctr"));
        let lists = offer(address, name, lacking).await?;
        assert_eq!(lists[HOST_KEYS], ["ssh-ed25519", "ecdsa-sha2-nistp256"], "{name}");
        for cipher in ["chacha20-poly1305@openssh.com", "aes256-ctr", "aes128-ctr"] {
            assert!(lists[CIPHERS].iter().any(|offered| offered == cipher), "{name}: {cipher}");
        }
        // Clients that wait for the offer get it.
        let lists = offer(address, name, None).await?;
        assert_eq!(lists[HOST_KEYS], ["ssh-ed25519"], "{name}");
    }
    Ok(())
}
