//! The host keys of an SSH server: Ed25519, and ECDSA for clients that do not know Ed25519.
//!
//! The second is computed from the first, so that servers made before there was a second key have
//! it too, and that it is as constant as the first without a file of its own.

use hmac::{Hmac, KeyInit, Mac};
use p256::SecretKey;
use sha2::Sha256;
use ssh_key::PrivateKey;
use ssh_key::private::{EcdsaKeypair, KeypairData};

/// A change here changes the host key of every server.
const PURPOSE: &[u8] = b"kohakuriver SSH host key ecdsa-sha2-nistp256";

/// Returns the keys of a server whose Ed25519 key is `first`, in the order of preference.
pub fn host_keys(first: PrivateKey) -> Vec<PrivateKey> {
    let pair = first.key_data().ed25519();
    let second = pair.and_then(|pair| ecdsa(&pair.private.to_bytes()));
    std::iter::once(first).chain(second).collect()
}

fn ecdsa(ed25519_seed: &[u8; 32]) -> Option<PrivateKey> {
    // One number of 2^32 is no key; then the next is taken.
    let private = (0..=u8::MAX).find_map(|attempt| {
        let mut mac = Hmac::<Sha256>::new_from_slice(ed25519_seed).ok()?;
        mac.update(PURPOSE);
        mac.update(&[attempt]);
        SecretKey::from_slice(&mac.finalize().into_bytes()).ok()
    })?;
    let pair =
        EcdsaKeypair::NistP256 { public: private.public_key().into(), private: private.into() };
    PrivateKey::new(KeypairData::Ecdsa(pair), "").ok()
}

#[cfg(test)]
mod tests {
    use ssh_key::private::Ed25519Keypair;

    use super::*;

    #[test]
    fn ecdsa_host_key_is_the_same_in_every_release() {
        let keys = host_keys(Ed25519Keypair::from_seed(&[7; 32]).into());
        let shown: Vec<_> = keys.iter().map(|key| key.public_key().to_openssh().unwrap()).collect();
        let expected = [
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOpKbGPinFIKvvVQexMuxfmVR3auvr57kkIe6mkURtIs",
            "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBBnpPTfRT/Pz2acwV1\
             Y0H2mHv8fvlfXM2rdt+KYyRWWpPJrmY5pPVR8dAv++ydcc9dWPW1xnyg8B8uTBreetF94=",
        ];
        assert_eq!(shown, expected);
        let other = host_keys(Ed25519Keypair::from_seed(&[8; 32]).into());
        assert_ne!(other[1].public_key(), keys[1].public_key());
    }
}
