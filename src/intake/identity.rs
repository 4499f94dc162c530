//! Which agent answers, and whether anybody uses it.
//!
//! A background agent is found by a file that names its port ([`crate::agent::background`]). The file may be stale, and
//! another program may have the port by now: `GET /-/instance?nonce=TEXT` answers with a code over the nonce that only
//! the holder of the file's secret can compute. The secret itself never crosses a connection.
//!
//! An agent that ends when it is idle must not do so between this answer and the first request of the program that
//! asked: a race between two processes. [`AgentIdentity::prove`] counts the request first and then reads whether the agent closes;
//! [`AgentIdentity::close_unless_used`] announces the end first and then reads the count. Whatever the interleaving, either
//! the agent stays or the answer says that it closes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ring::hmac;

/// The longest nonce that is answered, in bytes.
const NONCE_BYTES_MAX: usize = 128;

/// Counts requests, and proves the agent's identity.
#[derive(Debug)]
pub struct AgentIdentity {
    key: hmac::Key,
    requests: AtomicU64,
    is_closing: AtomicBool,
}

impl AgentIdentity {
    /// Returns the identity of an agent with this secret.
    pub fn new(secret: &[u8]) -> Self {
        Self { key: key(secret), requests: AtomicU64::new(0), is_closing: AtomicBool::new(false) }
    }

    /// Counts a request.
    pub(super) fn count(&self) {
        self.requests.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns the proof for a nonce, and whether the agent closes; `None` for a nonce that can't be one. The request
    /// was counted before.
    pub(super) fn prove(&self, nonce: &str) -> Option<(String, bool)> {
        if nonce.is_empty() || nonce.len() > NONCE_BYTES_MAX {
            return None;
        }
        let proof = hex(hmac::sign(&self.key, signed(nonce).as_bytes()).as_ref());
        Some((proof, self.is_closing.load(Ordering::SeqCst)))
    }

    /// Returns how many requests were counted.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    /// Announces the end of the agent, unless a request came after `seen` were counted; returns whether it ends.
    pub fn close_unless_used(&self, seen: u64) -> bool {
        self.is_closing.store(true, Ordering::SeqCst);
        let is_unused = self.requests() == seen;
        if !is_unused {
            self.is_closing.store(false, Ordering::SeqCst);
        }
        is_unused
    }
}

/// Returns whether a proof is that of the agent with this secret.
pub(crate) fn is_proof(secret: &[u8], nonce: &str, proof: &str) -> bool {
    unhex(proof).is_some_and(|proof| hmac::verify(&key(secret), signed(nonce).as_bytes(), &proof).is_ok())
}

fn key(secret: &[u8]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, secret)
}

fn signed(nonce: &str) -> String {
    format!("opik-offline instance {nonce}")
}

/// Returns bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the bytes of a hexadecimal text.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let pairs = digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    if digits.len().is_multiple_of(2) { pairs.collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_holder_of_the_secret_proves_to_be_the_agent() {
        let identity = AgentIdentity::new(b"secret");
        let (proof, is_closing) = identity.prove("nonce").expect("a nonce");
        assert!(is_proof(b"secret", "nonce", &proof) && !is_closing);
        assert!(!is_proof(b"secret", "another nonce", &proof), "an old answer would pass");
        assert!(!is_proof(b"another secret", "nonce", &proof), "a stranger at the port would pass");
        for nothing in ["", "0", "zz", &"0".repeat(64)] {
            assert!(!is_proof(b"secret", "nonce", nothing), "{nothing}");
        }
        assert_eq!((identity.prove(""), identity.prove(&"n".repeat(129))), (None, None));
    }

    #[test]
    fn an_agent_that_was_just_found_does_not_end_as_idle() {
        let identity = AgentIdentity::new(b"secret");
        let seen = identity.requests();
        identity.count();
        assert!(!identity.close_unless_used(seen), "the program that found it would send to nobody");
        assert_eq!(identity.prove("n").map(|(_, is_closing)| is_closing), Some(false));
        assert!(identity.close_unless_used(identity.requests()));
        identity.count();
        assert_eq!(identity.prove("n").map(|(_, is_closing)| is_closing), Some(true), "it was found, and has ended");
    }
}
