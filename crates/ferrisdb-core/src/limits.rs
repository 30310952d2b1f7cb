//! How large things may be: FoundationDB's numbers, as options.

/// Limits of keys, values and transactions. All sides of a database use the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a key outside the system key space. Default: 10,000.
    pub key_bytes: usize,
    /// Bytes of a key in the system key space. Default: 30,000.
    pub system_key_bytes: usize,
    /// Bytes of a value or of an atomic operation's operand. Default: 100,000.
    pub value_bytes: usize,
    /// Bytes of a transaction: mutations and conflict ranges. Default: 10,000,000.
    pub transaction_bytes: usize,
    /// How long versions stay readable and transactions may write, in versions (microseconds). Default: 5,000,000.
    pub window_versions: u64,
    /// Watches that one client may have pending. Default: 10,000.
    pub watches: usize,
}

impl Limits {
    /// The defaults.
    pub const DEFAULT: Limits = Limits {
        key_bytes: 10_000,
        system_key_bytes: 30_000,
        value_bytes: 100_000,
        transaction_bytes: 10_000_000,
        window_versions: 5_000_000,
        watches: 10_000,
    };

    /// The limit for this very key.
    pub fn key_bytes_for(&self, key: &[u8]) -> usize {
        if key.starts_with(crate::key::USER_END) { self.system_key_bytes } else { self.key_bytes }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits::DEFAULT
    }
}
