//! Passwords, as Argon2id: slow on purpose, so off the threads that serve everybody, and only a
//! few at a time.

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use kohakuriver_model::AccountError;
use tokio::sync::{OnceCell, Semaphore};

/// As existing clients know it.
const SHORTEST: usize = 8;
/// Nobody types more, and hashing it is work that a stranger could ask for.
const LONGEST: usize = 1024;
/// Each takes 19 MiB and a processor for some 30 ms.
const AT_ONCE: usize = 2;

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

/// The right to hash.
#[derive(Debug)]
pub struct Passwords {
    slots: Semaphore,
    /// A hash of nothing, so that an unknown name takes as long as a wrong password.
    dummy: OnceCell<String>,
}

impl Default for Passwords {
    fn default() -> Self {
        Self { slots: Semaphore::new(AT_ONCE), dummy: OnceCell::new() }
    }
}

/// Whether it may be one.
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

    /// Takes as long where there is no hash.
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
        let right = self
            .work(move || {
                let hash = PasswordHash::new(&hash).map_err(|_| PasswordError::Hash)?;
                Ok::<_, PasswordError>(
                    Argon2::default().verify_password(password.as_bytes(), &hash).is_ok(),
                )
            })
            .await??;
        Ok(right && known)
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
    async fn only_the_right_password_of_a_known_account_is_right() {
        let passwords = Passwords::default();
        let long = "ä".repeat(100);
        let hash = passwords.hash(long.clone()).await.unwrap();
        assert!(hash.starts_with("$argon2id$"));
        assert!(passwords.verify(long.clone(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify("something else".to_owned(), Some(hash)).await.unwrap());
        assert!(!passwords.verify("no account".to_owned(), None).await.unwrap());
        assert!(!passwords.verify("x".repeat(LONGEST + 1), None).await.unwrap());
    }

    #[test]
    fn short_and_endless_passwords_are_refused() {
        assert!(check("1234567").is_err());
        assert!(check("ääääääää").is_ok());
        assert!(check(&"x".repeat(LONGEST + 1)).is_err());
    }
}
