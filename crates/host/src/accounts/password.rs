//! Password hashing by Argon2id. It is slow on purpose, so it runs off the threads that serve
//! requests, a few hashes at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use argon2::password_hash::PasswordHasher;
use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Block, Params, Version};
use kohakuriver_model::AccountError;
use subtle::ConstantTimeEq;
use tokio::sync::{OnceCell, Semaphore};

/// The minimum that existing clients know.
const SHORTEST: usize = 8;
/// Longer than any typed password; hashing is work that an unauthenticated client could cause.
const LONGEST: usize = 1024;
/// Each hash takes 19 MiB and a processor for some 30 ms.
const AT_ONCE: usize = 2;
/// How long the memory of a hash is retained for the next ones.
const KEPT: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    #[error("a password has at least {SHORTEST} characters")]
    Short,
    #[error("a password has at most {LONGEST} bytes")]
    Long,
    #[error(transparent)]
    Name(#[from] AccountError),
    #[error("hashing the password failed")]
    Hash,
}

/// The limits and memory of hashing.
#[derive(Debug)]
pub struct Passwords {
    slots: Semaphore,
    memory: Memory,
    /// A hash of no account, so that an unknown name takes as long as a wrong password.
    dummy: OnceCell<String>,
}

impl Default for Passwords {
    fn default() -> Self {
        let slots = Semaphore::new(AT_ONCE);
        Self { slots, memory: Memory::default(), dummy: OnceCell::new() }
    }
}

/// Argon2's memory, retained between log-ins in succession: getting 19 MiB from the kernel, page by
/// page, takes more than half as long as hashing in them.
#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<RetainedMemory>>);

#[derive(Debug, Default)]
struct RetainedMemory {
    free: Vec<Vec<Block>>,
    uses: u64,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, RetainedMemory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the password matches the hash. Takes some 30 ms of a processor.
    fn verify(&self, password: &[u8], hash: &str) -> Option<bool> {
        let hash = PasswordHash::new(hash).ok()?;
        let algorithm = Algorithm::try_from(hash.algorithm.as_str()).ok()?;
        let version = hash.version.map_or(Ok(Version::default()), Version::try_from).ok()?;
        let params = Params::try_from(&hash).ok()?;
        let (salt, expected) = (hash.salt?, hash.hash?);
        let mut blocks = self.lock().free.pop().unwrap_or_default();
        blocks.resize(params.block_count(), Block::default());
        let mut output = vec![0; expected.as_bytes().len()];
        let hasher = Argon2::new(algorithm, version, params);
        let done = hasher.hash_password_into_with_memory(password, &salt, &mut output, &mut blocks);
        self.lock().free.push(blocks);
        done.ok()?;
        Some(bool::from(output.ct_eq(expected.as_bytes())))
    }

    /// Releases the memory to the kernel after a while, unless it is used again in the meantime.
    fn release_later(&self) {
        let seen = {
            let mut retained = self.lock();
            retained.uses += 1;
            retained.uses
        };
        let memory = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(KEPT).await;
            let mut retained = memory.lock();
            if retained.uses == seen {
                retained.free = Vec::new();
            }
        });
    }
}

/// Checks the length of a new password.
pub fn check(password: &str) -> Result<(), PasswordError> {
    if password.chars().count() < SHORTEST {
        return Err(PasswordError::Short);
    }
    if password.len() > LONGEST { Err(PasswordError::Long) } else { Ok(()) }
}

impl Passwords {
    pub async fn hash(&self, password: String) -> Result<String, PasswordError> {
        check(&password)?;
        self.work(move || {
            let hashed = Argon2::default().hash_password(password.as_bytes());
            hashed.map(|hash| hash.to_string()).map_err(|_| PasswordError::Hash)
        })
        .await?
    }

    /// Checks a password. Takes as long where there is no hash.
    pub async fn verify(
        &self,
        password: String,
        hash: Option<String>,
    ) -> Result<bool, PasswordError> {
        if password.len() > LONGEST {
            return Ok(false);
        }
        let known = hash.is_some();
        let hash = match hash {
            Some(hash) => hash,
            None => {
                self.dummy.get_or_try_init(|| self.hash("no account".to_owned())).await?.clone()
            }
        };
        let memory = self.memory.clone();
        let right = self.work(move || memory.verify(password.as_bytes(), &hash)).await?;
        self.memory.release_later();
        Ok(right.ok_or(PasswordError::Hash)? && known)
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PasswordError> {
        let _slot = self.slots.acquire().await.map_err(|_| PasswordError::Hash)?;
        tokio::task::spawn_blocking(work).await.map_err(|_| PasswordError::Hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn password_verifies_for_its_own_account_only() {
        let passwords = Passwords::default();
        let long = "ä".repeat(100);
        let hash = passwords.hash(long.clone()).await.unwrap();
        assert!(hash.starts_with("$argon2id$"));
        assert!(passwords.verify(long.clone(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify("something else".to_owned(), Some(hash)).await.unwrap());
        assert!(!passwords.verify("no account".to_owned(), None).await.unwrap());
        assert!(!passwords.verify("x".repeat(LONGEST + 1), None).await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_used_again_and_given_back_when_nobody_logs_in() {
        let passwords = Passwords::default();
        let hash = passwords.hash("correct horse".to_owned()).await.unwrap();
        let free = || passwords.memory.lock().free.iter().map(Vec::len).collect::<Vec<_>>();
        for _ in 0..3 {
            let right = passwords.verify("correct horse".to_owned(), Some(hash.clone())).await;
            assert!(right.unwrap(), "what others left there changes nothing");
            let wrong = passwords.verify("wrong horse".to_owned(), Some(hash.clone())).await;
            assert!(!wrong.unwrap());
        }
        assert_eq!(free(), [Params::default().block_count()]);
        tokio::time::sleep(KEPT * 2).await;
        assert!(free().is_empty());
        assert!(passwords.verify("x".to_owned(), Some("nonsense".to_owned())).await.is_err());
    }

    #[test]
    fn short_and_endless_passwords_are_refused() {
        assert!(check("1234567").is_err());
        assert!(check("ääääääää").is_ok());
        assert!(check(&"x".repeat(LONGEST + 1)).is_err());
    }
}
